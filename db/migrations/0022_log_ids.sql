-- Ids of log rows cost less. They still begin with the time and have version 7; the 65 bits that follow the time come
-- from random() instead of gen_random_uuid(), which asks the operating system for each. Nobody is given access by the id
-- of a log row, so it need not be hard to guess. Ids of pushes stay as they are.

do $$
begin
  -- A default that the application has given is left alone, and so is a table that it has made anew.
  if not push_listener.adopted('push_delivery_logs') and exists (
    select from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
      where d.adrelid = to_regclass('public.push_delivery_logs') and a.attname = 'id' and a.atttypid = 'uuid'::regtype
        and pg_get_expr(d.adbin, d.adrelid) like '%uuid_send(gen_random_uuid())%'
  ) then
    alter table public.push_delivery_logs
      alter column id set default encode(
        int8send((1000 * date_part('epoch', clock_timestamp()))::bigint << 16 | 28672 | (4095 * random())::bigint)
        || int8send((-9223372036854775808) | (4611686018427387903 * random())::bigint), 'hex')::uuid;
  end if;
end
$$;
