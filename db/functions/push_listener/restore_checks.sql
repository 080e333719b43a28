-- revision 1
-- Part of restore_table(): puts back the CHECK constraints that adopt() widened. Rows that break one are deleted if
-- p_discard says so; otherwise the constraint comes back as NOT VALID, for new rows only.
create or replace function push_listener.restore_checks(p_table text, p_discard boolean) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_path constant text :=
    'with path as materialized (select set_config(''search_path'', null, true) as of_the_application) ';
  found record;
begin
  for found in
    select b.name,
           -- Without this cast, Postgres reads its own text for a list of varchar differently from what it meant.
           pg_catalog.regexp_replace(b.definition, '\(ARRAY\[([^]]*::character varying)\]\)::text\[\]',
                                     '((ARRAY[\1])::character varying[])::text[]', 'g') as definition,
           "substring"(b.definition, '^CHECK \((.*)\)(?: NO INHERIT| NOT VALID| NOT ENFORCED)*$') as condition
      from push_listener.adoption_record b
      where b.kind = 'check' and b.relation = p_table
  loop
    if p_discard then
      execute v_path || pg_catalog.format('delete from %s using path where not (%s)', v_table, found.condition);
      set constraints all immediate;
      set local search_path = pg_catalog, pg_temp;
    end if;
    begin
      execute pg_catalog.format('alter table %s add constraint %I %s', v_table, found.name, found.definition);
    exception when check_violation then
      execute pg_catalog.format('alter table %s add constraint %I %s not valid', v_table, found.name, found.definition);
      raise warning '%', pg_catalog.format('%I is back on %I for new rows only: it has rows that would break it',
                                           found.name, p_table);
    end;
  end loop;
end
$$;
revoke all on function push_listener.restore_checks from public;
