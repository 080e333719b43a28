do $$
begin
  -- A default that the application has given is left alone, and so is a table that it has made anew.
  if not push_listener.adopted('push_notifications') and exists (
    select from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
      where d.adrelid = to_regclass('public.push_notifications') and a.attname = 'next_attempt_at'
        and pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
  ) then
    alter table public.push_notifications alter column next_attempt_at set default now();
  end if;
end
$$;
drop trigger if exists push_listener_never_early_again on public.push_notifications;
drop trigger if exists push_listener_never_early on public.push_notifications;
drop function if exists push_listener.never_early();
