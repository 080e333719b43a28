-- The role push_listener stays, without a privilege in this database: roles belong to the whole server, and another
-- database may use it.

do $$
declare
  old record;
  grantee record;
begin
  for old in
    select p.polname, p.polrelid::regclass as relation from pg_policy p
      join push_listener.guarded() g on g.relation = p.polrelid
      where starts_with(p.polname, 'push_listener_')
  loop
    execute format('drop policy %I on %s', old.polname, old.relation);
  end loop;
  drop trigger if exists push_listener_begin_as_new on public.push_notifications;
  if to_regprocedure('public.push_disable_token(text, text)') is not null and not exists (
    select from push_listener.adoption_record where kind = 'function' and relation = 'push_disable_token'
  ) then
    alter function public.push_disable_token(text, text) security invoker;
  end if;

  -- The privileges as they were: the present ones are revoked, and each recorded one is granted.
  -- A table that the application has made anew has privileges of its own.
  for old in
    select * from push_listener.guarded()
      where object <> all (array(
        select 'public.' || t from unnest('{push_notifications,push_delivery_logs,push_devices,telemetry_logs}'::text[]) t
          where not push_listener.is_as_left(t)))
  loop
    for grantee in
      select distinct coalesce(quote_ident(r.rolname), 'public') as name
        from (
          select (aclexplode(old.acl)).grantee
          union
          select (aclexplode(t.attacl)).grantee from pg_attribute t
            where t.attrelid = old.relation and t.attacl is not null and not t.attisdropped
        ) a
        left join pg_roles r on r.oid = a.grantee
        where a.grantee <> old.owner
    loop
      execute format('revoke all on %s %s from %s cascade', old.kind, old.object, grantee.name);
    end loop;
  end loop;
  for old in
    select definition from push_listener.adoption_record
      where kind = 'grant'
        and relation <> all (array(
          select 'public.' || t from unnest('{push_notifications,push_delivery_logs,push_devices,telemetry_logs}'::text[]) t
            where not push_listener.is_as_left(t)))
      order by name
  loop
    begin
      execute old.definition;
    exception when undefined_object or undefined_table or undefined_column or undefined_function then
      null;  -- the role, or what the privilege was on, no longer exists
    end;
  end loop;
  if exists (select from pg_roles where rolname = 'push_listener') then
    revoke all on schema push_listener from push_listener;
    revoke all on all tables in schema push_listener from push_listener;
    revoke all on all functions in schema push_listener from push_listener;
    revoke usage on schema public from push_listener;
  end if;
end
$$;

delete from push_listener.adoption_record where kind in ('grant', 'keep');
drop function if exists push_listener.apply_privileges();
drop function if exists push_listener.privilege_warnings();
drop function if exists push_listener.mark_policies();
drop function if exists push_listener.drift();
drop function if exists push_listener.policy_changes();
drop function if exists push_listener.privilege_changes();
drop function if exists push_listener.policy_mark(regclass, text, text);
drop function if exists push_listener.policies();
drop function if exists push_listener.user_inserts();
drop function if exists push_listener.meant();
drop function if exists push_listener.granted();
drop function if exists push_listener.shows_own_rows(text);
drop function if exists push_listener.can_tell_users();
drop function if exists push_listener.begin_as_new();
drop function if exists push_listener.share_new_columns();
drop function if exists push_listener.grant_kept();
drop function if exists push_listener.kept();
drop function if exists push_listener.reaches(oid, oid);
drop function if exists push_listener.guarded();
drop function if exists push_listener.api();
