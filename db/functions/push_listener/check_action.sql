-- revision 1
-- Every operator_ function calls this first. So a grant by mistake lets no user act, and no application's server either.
create or replace function push_listener.check_action(p_who text, p_reason text, p_filter jsonb, p_ids uuid[])
  returns void
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_caller constant name := push_listener.caller();
  v_problem constant text := case
    when pg_catalog.length(p_who) between 1 and 200 is not true then 'p_who must name the person, in 1 to 200 characters'
    when pg_catalog.length(p_reason) > 1000 then 'p_reason must be no longer than 1000 characters'
    when pg_catalog.jsonb_typeof(p_filter) <> 'object' then 'p_filter must be a JSON object'
    when pg_catalog.octet_length(p_filter::text) > 4096 then 'p_filter must be no larger than 4096 bytes'
    when p_ids is null then 'p_ids must not be null'
    when pg_catalog.cardinality(p_ids) > 1000 then 'p_ids must have no more than 1000 elements' end;
begin
  if not exists (
    select from pg_catalog.pg_class q
      where q.oid = 'push_listener.actions'::regclass and pg_catalog.pg_has_role(v_caller, q.relowner, 'usage')
    union all
    select from pg_catalog.pg_roles o
      where o.rolname = 'push_listener_operator' and pg_catalog.pg_has_role(v_caller, o.oid, 'usage')
        and not exists (
          select from pg_catalog.pg_roles u
            where u.rolname in ('anon', 'authenticated') and pg_catalog.pg_has_role(v_caller, u.oid, 'usage'))
  ) then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not act on pushes', v_caller),
      hint = 'A login that may act is a member of push_listener_operator, and not of anon or authenticated.';
  end if;
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;
end
$$;
revoke all on function push_listener.check_action from public;
comment on function push_listener.check_action is
  'Raises an error if the caller is no operator, or if what is to be recorded is not within its bounds.';
