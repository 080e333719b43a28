-- revision 1
-- Postgres does not keep the text of a policy. The comment on the policy holds it, with a hash of what Postgres made
-- of it.
create or replace function push_listener.policy_mark(p_relation regclass, p_name text, p_condition text) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.format('%s [%s]', p_condition, pg_catalog.md5(pg_catalog.concat_ws(' ', p.polcmd, p.polpermissive,
           p.polroles::regrole[]::text, pg_catalog.pg_get_expr(p.polqual, p.polrelid),
           pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))))
    from pg_catalog.pg_policy p
    where p.polrelid = p_relation and p.polname = p_name
$$;
revoke all on function push_listener.policy_mark from public;
