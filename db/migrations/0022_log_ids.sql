-- Ids of log rows cost less. They still begin with the time and have version 7; the 65 bits that follow the time come
-- from random() instead of gen_random_uuid(), which asks the operating system for each. Nobody is given access by the id
-- of a log row, so it need not be hard to guess. Ids of pushes stay as they are.

do $$
begin
  if not push_listener.adopted('push_delivery_logs') then
    alter table public.push_delivery_logs
      alter column id set default encode(
        int8send((1000 * date_part('epoch', clock_timestamp()))::bigint << 16 | 28672 | (4095 * random())::bigint)
        || int8send((-9223372036854775808) | (4611686018427387903 * random())::bigint), 'hex')::uuid;
  end if;
end
$$;
