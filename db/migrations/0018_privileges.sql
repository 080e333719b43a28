-- Who may do what with which table: docs/privileges.md has one table of it, and
-- tests/integration/postgres/test_privileges.py tries every cell.
--
-- Default privileges do not matter here: older Supabase projects grant everything on a new table to the three API
-- roles, newer ones nothing. So everything is revoked, and apply_privileges() grants what is meant. The owner of the
-- tables may call it again at any time: when a role or auth.uid() that was missing has been created, or when the view
-- push_recipients has been dropped and created again. A later migration that adds a function to the schema public ends
-- with a call of it. One that adds other things may leave that to the next; until then only the owner may use them.

-- The privileges as they are now -----------------------------------------------------------------------------------

\ir ../functions/push_listener/api.sql
\ir ../functions/push_listener/guarded.sql

insert into push_listener.adoption_record (kind, relation, name, definition)
select 'grant', g.object, format('%s%s to %s', a.privilege_type, g.columns, grantee.name),
       format('grant %s%s on %s %s to %s%s', lower(a.privilege_type), g.columns, g.kind, g.object, grantee.name,
              case when bool_or(a.is_grantable) then ' with grant option' end)
  from (
    select object, kind, owner, acl, '' as columns from push_listener.guarded()
    union all
    select g.object, g.kind, g.owner, t.attacl, format(' (%I)', t.attname)
      from push_listener.guarded() g
      join pg_attribute t on t.attrelid = g.relation and t.attacl is not null and not t.attisdropped
  ) g
  cross join lateral aclexplode(g.acl) a
  left join pg_roles r on r.oid = a.grantee
  cross join lateral (select coalesce(quote_ident(r.rolname), 'public') as name) grantee
  where a.grantee <> g.owner
  group by g.object, g.kind, g.columns, a.privilege_type, grantee.name;

-- What users keep ---------------------------------------------------------------------------------------------------
--
-- In adopted tables users keep what the application let them do, unless it would let them forge or repeat a push. The
-- record has it as role, privilege and columns ('keep'). apply_privileges() leaves users at most that; what the
-- application revokes later stays revoked.
--
--   select   PUBLIC, anon, authenticated: the columns that they could read, and none that push-listener adds. A privilege on
--            the whole table would cover the new columns, so it becomes one on the old columns. If row-level security let
--            them read no row, they keep nothing: otherwise a policy of ours could open what was closed.
--   insert   authenticated: the columns that existed; the trigger push_listener_begin_as_new makes every such row a new push
--   update   authenticated: in the queue and its logs, no column that push-listener uses
--   delete   authenticated: as the policies say; only finished rows of the queue, and no rows of its logs
--
-- Insert, update and delete count if the role had the privilege and a policy allowed it, or row-level security was
-- off. Anonymous users keep one of these: they insert telemetry if a policy names them, because an application may
-- report errors before a user has signed in.

\ir ../functions/push_listener/reaches.sql

with adopted as (
  select c.oid, c.relname, c.relrowsecurity, c.relowner, c.relacl, push_listener.columns(c.relname) as ours
    from pg_class c
    where c.relnamespace = 'public'::regnamespace and push_listener.adopted(c.relname)
), old_columns as (
  select t.oid, t.relname, t.relrowsecurity, t.relowner, t.relacl, t.ours, a.attnum, a.attname, a.attacl
    from adopted t
    join push_listener.adoption_record b on b.kind = 'column' and b.relation = t.relname
    join pg_attribute a on a.attrelid = t.oid and a.attname = b.name and not a.attisdropped
), readable as (
  select distinct c.oid, c.relname, c.relrowsecurity, c.attnum, c.attname, g.grantee
    from old_columns c
    cross join lateral (
      select x.grantee, x.privilege_type from aclexplode(c.relacl) x
      union all
      select x.grantee, x.privilege_type from aclexplode(c.attacl) x
    ) g
    where g.privilege_type = 'SELECT' and g.grantee <> c.relowner
), read as (
  select r.relname, coalesce(role.rolname, 'public') as role, 'select' as privilege, r.attnum, r.attname
    from readable r
    left join pg_roles role on role.oid = r.grantee
    where coalesce(role.rolname, 'public') in ('public', 'anon', 'authenticated')
      and (not r.relrowsecurity or exists (
        select from pg_policy p, unnest(p.polroles) for_role
          where p.polrelid = r.oid and p.polpermissive and p.polcmd in ('r', '*')
            and (r.grantee = 0 or push_listener.reaches(for_role, r.grantee))))
), open as (
  select t.*, r.rolname, command.name as command
    from adopted t
    cross join (values ('insert', 'a'), ('update', 'w'), ('delete', 'd')) command(name, code)
    join pg_roles r on r.rolname = 'authenticated'
                       or r.rolname = 'anon' and t.relname = 'telemetry_logs' and command.name = 'insert'
    where not t.relrowsecurity and command.name <> 'delete'
       or exists (
         select from pg_policy p, unnest(p.polroles) for_role
           where p.polrelid = t.oid and p.polpermissive and p.polcmd in (command.code::"char", '*')
             and (r.oid = for_role
                  or r.rolname = 'authenticated' and push_listener.reaches(for_role, r.oid)))
), written as (
  select o.relname, o.rolname, o.command, c.attnum, c.attname
    from open o
    join old_columns c on c.oid = o.oid
    where o.command <> 'delete' and has_column_privilege(o.rolname, o.oid, c.attnum, o.command)
      and not (o.command = 'update' and o.relname in ('push_notifications', 'push_delivery_logs')
               and c.attname = any (o.ours))
)
insert into push_listener.adoption_record (kind, relation, name, definition)
select 'keep', k.relname, k.role || ' ' || k.privilege, array_agg(k.attname::text order by k.attnum)::text
  from (select * from read union all select * from written) as k(relname, role, privilege, attnum, attname)
  group by k.relname, k.role, k.privilege
union all
select 'keep', o.relname, o.rolname || ' delete', null
  from open o
  where o.command = 'delete' and o.relname <> 'push_delivery_logs'
    and has_table_privilege(o.rolname, o.oid, 'delete');

\ir ../functions/push_listener/kept.sql
\ir ../functions/push_listener/grant_kept.sql
\ir ../functions/push_listener/share_new_columns.sql
\ir ../functions/push_listener/begin_as_new.sql

-- The listener's own role -------------------------------------------------------------------------------------------

do $$
begin
  if not exists (select from pg_roles where rolname = 'push_listener') then
    create role push_listener nologin;
    comment on role push_listener is 'Can do the work of push-listener run, and nothing else.';
  end if;
exception
  when insufficient_privilege then
    raise warning 'the role push_listener was not created, as % may not create roles: until it exists, push-listener works '
                  'as the owner of the tables. To have the role, let an administrator run "create role push_listener '
                  'nologin", then the owner "select push_listener.apply_privileges()"', current_user;
  when duplicate_object or unique_violation then
    null;  -- another database of this server is being migrated at the same time
end
$$;

-- The listener has no privilege on the table that holds the tokens: it disables a token with the owner's rights.
do $$
begin
  if not exists (
    select from push_listener.adoption_record where kind = 'function' and relation = 'push_disable_token'
  ) then
    alter function public.push_disable_token(text, text) security definer;
  end if;
end
$$;

-- What is granted, what is meant, and the difference -----------------------------------------------------------------

\ir ../functions/push_listener/can_tell_users.sql
\ir ../functions/push_listener/shows_own_rows.sql
\ir ../functions/push_listener/granted.sql
\ir ../functions/push_listener/meant.sql
\ir ../functions/push_listener/user_inserts.sql
\ir ../functions/push_listener/policies.sql
\ir ../functions/push_listener/policy_mark.sql
\ir ../functions/push_listener/privilege_changes.sql
\ir ../functions/push_listener/policy_changes.sql
\ir ../functions/push_listener/drift.sql
\ir ../functions/push_listener/mark_policies.sql
\ir ../functions/push_listener/privilege_warnings.sql
\ir ../functions/push_listener/apply_privileges.sql

-- Everything is revoked, and what is meant or kept is granted ---------------------------------------------------------

do $$
declare
  found record;
begin
  for found in
    select g.object, g.kind, string_agg(r.name, ', ') as roles
      from push_listener.guarded() g
      cross join (
        select 'public' as name
        union all
        select quote_ident(rolname) from pg_roles
          where rolname in ('anon', 'authenticated', 'service_role', 'push_listener')
      ) r
      group by g.object, g.kind
  loop
    execute format('revoke all on %s %s from %s cascade', found.kind, found.object, found.roles);
  end loop;
end
$$;

-- Other roles still read the columns that existed, and none of the new ones.
do $$
declare
  found record;
begin
  for found in
    select c.relname, r.rolname, bool_or(a.is_grantable) as grantable,
           (select string_agg(quote_ident(b.name), ', ') from push_listener.adoption_record b
              join pg_attribute t on t.attrelid = c.oid and t.attname = b.name and not t.attisdropped
              where b.kind = 'column' and b.relation = c.relname) as columns
      from pg_class c
      cross join lateral aclexplode(c.relacl) a
      join pg_roles r on r.oid = a.grantee
      where c.relnamespace = 'public'::regnamespace and push_listener.adopted(c.relname)
        and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
      group by c.oid, c.relname, r.rolname
  loop
    execute format('revoke select on public.%I from %I cascade', found.relname, found.rolname);
    execute format('grant select (%s) on public.%I to %I%s', found.columns, found.relname, found.rolname,
                   case when found.grantable then ' with grant option' end);
  end loop;
end
$$;

select push_listener.grant_kept();
select push_listener.apply_privileges();
