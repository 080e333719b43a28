do $$
begin
  if not push_listener.adopted('push_delivery_logs') then
    alter table public.push_delivery_logs
      alter column id set default encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        placing substring(int8send((1000 * extract(epoch from clock_timestamp()))::bigint) from 3) from 1
      ), 52, 1), 53, 1), 'hex')::uuid;
  end if;
end
$$;
