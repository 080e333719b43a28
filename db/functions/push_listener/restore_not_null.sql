-- revision 1
-- Part of restore_table(): gives columns their NOT NULL back, with a value for each row that has none; rows without a
-- fitting value are deleted if p_discard says so.
create or replace function push_listener.restore_not_null(p_table text, p_discard boolean) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_path constant text :=
    'with path as materialized (select set_config(''search_path'', null, true) as of_the_application) ';
  v_fill text;
  v_some boolean;
  found record;
begin
  for found in
    select b.name, b.definition, pg_catalog.pg_get_expr(d.adbin, d.adrelid) as value, t.typcategory
      from push_listener.adoption_record b
      join pg_catalog.pg_attribute a on a.attrelid = v_table and a.attname = b.name
      join pg_catalog.pg_type t on t.oid = a.atttypid
      left join pg_catalog.pg_attrdef d on d.adrelid = v_table and d.adnum = a.attnum
      where b.kind = 'required' and b.relation = p_table
  loop
    v_fill := coalesce(found.value, case found.typcategory when 'S' then '''''' when 'N' then '0' when 'D' then 'now()' end);
    execute pg_catalog.format('select exists (select from %s t where t.%I is null)', v_table, found.name) into v_some;
    -- A publication may refuse an update even of no row.
    if not v_some then
      null;
    elsif v_fill is not null then
      execute v_path || pg_catalog.format('update %s t set %I = %s from path where t.%2$I is null',
                                          v_table, found.name, v_fill);
    elsif p_discard then
      execute v_path || pg_catalog.format('delete from %s t using path where t.%I is null', v_table, found.name);
    end if;
    set constraints all immediate; -- ALTER TABLE fails while trigger events are pending
    set local search_path = pg_catalog, pg_temp;
    execute pg_catalog.format(
      case when found.definition is null then 'alter table %s alter column %I set not null'
           else 'alter table %s add constraint %3$I not null %2$I' end, v_table, found.name, found.definition);
  end loop;
end
$$;
revoke all on function push_listener.restore_not_null from public;
