-- revision 1
-- What is wrong with an element of telemetry, or null. p_user is the user that it must belong to; null allows any
-- user.
create or replace function push_listener.telemetry_problem(p_payload jsonb, p_user uuid) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select coalesce(case when p_payload is null or pg_catalog.jsonb_typeof(p_payload) <> 'object' then 'not a JSON object' end,
                  push_listener.json_problem(p_payload, 16384), case
    when pg_catalog.jsonb_typeof(p_payload -> 'type') is distinct from 'string'
      or pg_catalog.length(p_payload ->> 'type') not between 1 and 100 then 'type must be a string of 1 to 100 characters'
    when pg_catalog.jsonb_typeof(p_payload -> 'message') is distinct from 'string' then 'message must be a string'
    when pg_catalog.jsonb_typeof(p_payload -> 'meta') not in ('object', 'null') then 'meta must be a JSON object'
    when pg_catalog.jsonb_typeof(p_payload -> 'timestamp') not in ('string', 'null')
      or (p_payload ->> 'timestamp' is not null and push_listener.to_time(p_payload ->> 'timestamp') is null)
      then 'timestamp must be a time in ISO 8601'
    when pg_catalog.jsonb_typeof(p_payload -> 'user_id') not in ('string', 'null')
      or p_payload ->> 'user_id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'user_id must be a UUID'
    when pg_catalog.lower(p_payload ->> 'user_id') <> p_user::text then 'user_id is not yours: leave it out' end)
$$;
revoke all on function push_listener.telemetry_problem from public;
