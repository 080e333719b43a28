do $$
begin
  -- A default that the application has given is left alone, and so is a table that it has made anew.
  if not push_listener.adopted('push_delivery_logs') and exists (
    select from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
      where d.adrelid = to_regclass('public.push_delivery_logs') and a.attname = 'id' and a.atttypid = 'uuid'::regtype
        and pg_get_expr(d.adbin, d.adrelid) like '%int8send(%random()%'
  ) then
    alter table public.push_delivery_logs
      alter column id set default encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        placing substring(int8send((1000 * extract(epoch from clock_timestamp()))::bigint) from 3) from 1
      ), 52, 1), 53, 1), 'hex')::uuid;
  end if;
end
$$;
