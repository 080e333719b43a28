-- revision 1
-- Widens what is too narrow in an adopted table. Each change is recorded first. None rewrites or scans the table.
create or replace function push_listener.adopt(
  p_table text,
  p_nullable text[] default '{}',  -- columns that push-listener sets to NULL
  p_optional text[] default '{}',  -- columns that an insert may leave out, unless they have a default
  p_defaults jsonb default '{}',   -- column: expression, for a column without default
  p_words jsonb default '{}',      -- column: values that its CHECK must allow
  p_lengths jsonb default '{}'     -- column: how many characters it must hold, null for any number
) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  v_narrow boolean;
  found record;
begin
  if not push_listener.adopted(p_table) then
    return;
  end if;

  for found in
    select k.conname, a.attname, pg_catalog.pg_get_constraintdef(k.oid) as definition,
           pg_catalog.pg_get_expr(k.conbin, k.conrelid) as condition,
           array(select pg_catalog.jsonb_array_elements_text(p_words -> a.attname::text)) as words
      from pg_catalog.pg_constraint k
      join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
      where k.conrelid = v_table and k.contype = 'c' and pg_catalog.cardinality(k.conkey) = 1
        and p_words ? a.attname::text
  loop
    execute pg_catalog.format('select pg_catalog.bool_or(not (%s)) from (select w as %I from pg_catalog.unnest($1) w) as %I',
                              found.condition, found.attname, p_table)
      into v_narrow using found.words;
    if v_narrow then
      insert into push_listener.adoption_record (kind, relation, name, definition)
        values ('check', p_table, found.conname, found.definition);
      -- NOT VALID, because validating reads every row. The backlog step validates it under a lock that blocks no
      -- writer.
      execute pg_catalog.format(
        'alter table %s drop constraint %I, add constraint %2$I check ((%s) or %I = any (%L::text[])) not valid',
        v_table, found.conname, found.condition, found.attname, found.words);
    end if;
  end loop;

  for found in
    select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) as type
      from pg_catalog.pg_attribute a
      where a.attrelid = v_table and p_lengths ? a.attname::text
        and a.atttypid = 'varchar'::regtype and a.atttypmod <> -1
        and (a.atttypmod - 4 < (p_lengths ->> a.attname::text)::integer) is not false
  loop
    insert into push_listener.adoption_record (kind, relation, name, definition)
      values ('type', p_table, found.attname, found.type);
    execute pg_catalog.format('alter table %s alter column %I type text', v_table, found.attname);
  end loop;

  for found in
    select a.attname, k.conname
      from pg_catalog.pg_attribute a
      -- In PostgreSQL 18 and later, NOT NULL is a constraint with a name.
      left join pg_catalog.pg_constraint k on k.conrelid = a.attrelid and k.contype = 'n' and k.conkey = array[a.attnum]
      where a.attrelid = v_table and a.attnotnull and not a.attisdropped
        and (a.attname = any (p_nullable) or (a.attname = any (p_optional) and not a.atthasdef))
  loop
    insert into push_listener.adoption_record (kind, relation, name, definition)
      values ('required', p_table, found.attname, found.conname);
    execute pg_catalog.format('alter table %s alter column %I drop not null', v_table, found.attname);
  end loop;

  for found in
    select a.attname, p_defaults ->> a.attname::text as expression
      from pg_catalog.pg_attribute a
      where a.attrelid = v_table and p_defaults ? a.attname::text and not a.atthasdef and a.attidentity = ''
        and not (a.attname = 'id' and a.atttypid <> 'uuid'::regtype)
  loop
    insert into push_listener.adoption_record (kind, relation, name) values ('default', p_table, found.attname);
    execute pg_catalog.format('alter table %s alter column %I set default %s', v_table, found.attname, found.expression);
  end loop;
end
$$;
revoke all on function push_listener.adopt from public;
