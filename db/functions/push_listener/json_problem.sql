-- revision 1
-- Why a JSON value from a phone is refused, or null.
--
-- The text of a JSON value can be much larger than its input: 1e131071 is 8 bytes to send and 131 KB to write out. So
-- the value is written out only if its stored size (at most some 4 times the text) and every number in it are small
-- enough. These are separate statements, because Postgres might evaluate the last part of one expression first, while
-- planning.
create or replace function push_listener.json_problem(p_value jsonb, p_bytes integer) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_catalog.pg_column_size(p_value) > 4 * p_bytes + 64 then
    return pg_catalog.format('larger than %s bytes', p_bytes);
  end if;
  if exists (
    select from pg_catalog.jsonb_path_query(p_value, 'strict $.** ? (@.type() == "number")') n
      where pg_catalog.abs(n::numeric) >= 1e400 or pg_catalog.scale(n::numeric) > 400
  ) then
    return 'has a number of more than 400 digits';
  end if;
  if pg_catalog.octet_length(p_value::text) > p_bytes then
    return pg_catalog.format('larger than %s bytes', p_bytes);
  end if;
  return null;
end
$$;
revoke all on function push_listener.json_problem from public;
