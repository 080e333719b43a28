-- revision 1
create or replace function push_listener.grant_kept() returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  k record;
begin
  for k in
    select kept.* from push_listener.kept() kept
      where kept.role = 'public' or exists (select from pg_catalog.pg_roles r where r.rolname = kept.role)
  loop
    execute pg_catalog.format('grant %s%s on public.%I to %s', k.privilege,
      '(' || (select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') from pg_catalog.unnest(k.columns) c) || ')',
      k.relation, case k.role when 'public' then 'public' else pg_catalog.quote_ident(k.role) end);
  end loop;
end
$$;
revoke all on function push_listener.grant_kept from public;
comment on function push_listener.grant_kept is 'Grants the privileges that push_listener.kept() lists.';
