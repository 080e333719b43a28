-- The roles of a Supabase project, for a plain Postgres. Run as superuser, in each database.
--
-- Roles belong to the whole cluster, so all of this may be repeated. On Supabase the superuser is
-- `supabase_admin` and `postgres`, the role that a project is given, is not one. A cluster made with the
-- superuser `supabase_admin` gets that very `postgres` here; where `postgres` is there already it stays as it is.

do $$
declare
  wanted record;
begin
  for wanted in
    select *
    from (
      values
        ('postgres', 'login nosuperuser createdb createrole replication bypassrls'),
        ('anon', 'nologin inherit'),
        ('authenticated', 'nologin inherit'),
        ('service_role', 'nologin inherit bypassrls'),
        ('authenticator', 'login noinherit')
    ) as role (name, attributes)
  loop
    if not exists (select from pg_catalog.pg_roles where rolname = wanted.name) then
      execute format('create role %I %s', wanted.name, wanted.attributes);
    end if;
  end loop;
end
$$;

grant anon, authenticated, service_role to postgres, authenticator;
grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;

-- The project's role owns the project's database, and through that the schema `public`.
do $$
begin
  execute format('alter database %I owner to postgres', current_database());
end
$$;

create schema if not exists extensions;
grant usage on schema extensions to postgres, anon, authenticated, service_role;
grant usage on schema public to postgres, anon, authenticated, service_role;
