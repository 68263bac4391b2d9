-- Write down a change that is made elsewhere: an order to nodes. Only journal, audit and lock are touched.
-- ARGV: 7 letters
if problem then return problem end
begin()
return done(ARGV[FIRST], '')
