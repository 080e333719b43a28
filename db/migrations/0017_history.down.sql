-- The counts stay until the step "statistics" is rolled back, and 'counted' with them.
select;
