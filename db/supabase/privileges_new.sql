-- What a project grants since then (every project since 2026-10-30): nothing beyond Postgres's own defaults.
-- Run as superuser, in each database, before the migrations.

alter default privileges for role postgres in schema public
  revoke all on tables from anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  revoke all on functions from anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  revoke all on sequences from anon, authenticated, service_role;
