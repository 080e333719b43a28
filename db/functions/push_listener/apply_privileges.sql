-- revision 1
create or replace function push_listener.apply_privileges() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  found record;
  statements text[];
  revoked boolean := false;
  lacking text;
begin
  -- Two calls at once would change the same rows of the catalogue. Nothing else takes this lock.
  lock table push_listener.adoption_record in share update exclusive mode;
  statements := array(select d.statement from push_listener.drift() d);
  for found in
    select s.statement from pg_catalog.unnest(statements) as s(statement) where pg_catalog.starts_with(s.statement, 'revoke ')
  loop
    execute found.statement;
    revoked := true;
  end loop;
  -- Revoking a privilege on a table also revokes it on each column, so what is missing is looked for afterwards.
  if revoked then
    statements := array(select d.statement from push_listener.drift() d);
  end if;
  for found in select s.statement from pg_catalog.unnest(statements) as s(statement) loop
    execute found.statement;
  end loop;
  perform push_listener.mark_policies();

  select pg_catalog.string_agg(d.finding, '; ') into lacking from push_listener.drift() d;
  if lacking is not null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('these privileges cannot be set: %s', lacking),
      hint = 'Another role has granted them. Let that role, or a superuser, revoke them, then run this again.';
  end if;
  for found in select w.line from push_listener.privilege_warnings() as w(line) loop
    raise warning '%', found.line;
  end loop;
  select pg_catalog.string_agg(r.rolname, ', ') into lacking
    from pg_catalog.pg_roles r
    where r.rolname in ('anon', 'authenticated')
      and (pg_catalog.has_column_privilege(r.oid, 'public.push_notifications', 'status', 'update')
           or pg_catalog.has_column_privilege(r.oid, 'public.push_notifications', 'next_attempt_at', 'update'));
  if lacking is not null then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('%s may change the state of rows in push_notifications', lacking),
      hint = 'The privilege comes from a role of which it is a member: revoke it there, then run this again.';
  end if;
end
$$;
revoke all on function push_listener.apply_privileges from public;
comment on function push_listener.apply_privileges is
  'Sets every privilege and policy of push-listener. It may be called again at any time, and changes and locks only what differs.';
