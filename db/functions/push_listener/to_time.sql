-- revision 1
-- A time in ISO 8601 as a timestamp, or null if the text is no such time. A text without a zone means UTC. (Postgres
-- 16 has pg_input_is_valid for this, 15 has not.)
create or replace function push_listener.to_time(p_text text) returns timestamptz
  language plpgsql immutable set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
begin
  if p_text ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?$' then
    return p_text::timestamptz;
  end if;
  return null;
exception when data_exception then
  return null;
end
$$;
revoke all on function push_listener.to_time from public;
