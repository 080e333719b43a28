-- What a project of before 2026-05-30 grants on whatever its role creates in `public`: everything, to everybody.
-- Run as superuser, in each database, before the migrations.

alter default privileges for role postgres in schema public
  grant all on tables to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to postgres, anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to postgres, anon, authenticated, service_role;
