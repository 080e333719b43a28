-- revision 1
-- Whether a table is the one that push-listener created or adopted. A table that the application has dropped and made
-- anew lacks most of the columns that push-listener had added; a column that somebody has dropped alone does not count.
create or replace function push_listener.is_as_left(p_table text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_catalog.pg_class c where c.oid = t.oid and c.relkind = 'r')
    and (
      select count(*) <= 2 * count(a.attname)
        from pg_catalog.unnest(push_listener.columns(p_table)) added(name)
        left join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attname = added.name and not a.attisdropped
        where not exists (
          select from push_listener.adoption_record b
            where b.kind = 'column' and b.relation = p_table and b.name = added.name))
    from (select pg_catalog.to_regclass(pg_catalog.format('public.%I', p_table)) as oid) t
$$;
revoke all on function push_listener.is_as_left from public;
