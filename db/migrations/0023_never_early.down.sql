do $$
begin
  if not push_listener.adopted('push_notifications') then
    alter table public.push_notifications alter column next_attempt_at set default now();
  end if;
end
$$;
drop trigger if exists push_listener_never_early_again on public.push_notifications;
drop trigger if exists push_listener_never_early on public.push_notifications;
drop function if exists push_listener.never_early();
