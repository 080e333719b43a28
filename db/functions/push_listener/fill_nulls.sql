-- revision 1
-- A bulk insert through PostgREST whose rows have unequal keys says NULL for what a row leaves out, and NULL overrides a
-- default. This gives such a row what the default would have given it. A row that is inserted as processing or failed,
-- by an import or by an application that sends pushes itself, is no work for push-listener, unless one of its workers
-- claimed the row before.
create or replace function push_listener.fill_nulls() returns trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  new.id := coalesce(new.id, pg_catalog.gen_random_uuid());
  -- An application whose rows begin in a status of its own decides about each itself.
  if new.status is null and exists (
    select from pg_catalog.pg_attribute a
      join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = tg_relid and a.attname = 'status'
        and pg_catalog.starts_with(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '''pending''')
  ) then
    new.status := 'pending';
  end if;
  if new.status = 'pending' then
    new.next_attempt_at := coalesce(new.next_attempt_at, now());
  elsif new.status in ('processing', 'failed') and new.claimed_by is null and coalesce(new.delivery_attempts, 0) = 0 then
    new.next_attempt_at := null;
  end if;
  new.priority := coalesce(new.priority, 'normal');
  new.retry_count := coalesce(new.retry_count, 0);
  new.delivery_attempts := coalesce(new.delivery_attempts, 0);
  new.lost_claims := coalesce(new.lost_claims, 0);
  new.created_at := coalesce(new.created_at, now());
  new.updated_at := coalesce(new.updated_at, now());
  return new;
end
$$;
revoke all on function push_listener.fill_nulls from public;
