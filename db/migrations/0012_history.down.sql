-- migrate: concurrently
drop index if exists public.push_notifications_over;
do $$
begin
  if not push_listener.adopted('push_notifications') then
    alter table public.push_notifications alter column id set default gen_random_uuid();
  end if;
end
$$;
