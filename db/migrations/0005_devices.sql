-- push_devices: which registration token belongs to which user. An application that keeps tokens in a table of its own
-- replaces the view push_recipients and the function push_disable_token.

create table if not exists public.push_devices (
  token text primary key
);

alter table public.push_devices
  add column if not exists user_id uuid,
  add column if not exists platform text,
  add column if not exists created_at timestamptz not null default now(),
  add column if not exists updated_at timestamptz not null default now(),
  add column if not exists disabled_at timestamptz,
  add column if not exists disabled_reason text;

do $$
begin
  perform push_listener.adopt(
    'push_devices',
    p_nullable => '{disabled_at,disabled_reason}',
    p_defaults => '{"id": "gen_random_uuid()", "created_at": "now()", "updated_at": "now()"}',
    p_words => '{"platform": ["android", "ios", "web"]}',
    p_lengths => '{"token": 4096, "platform": 7, "disabled_reason": null}');

  update public.push_devices set token = token where false; -- a publication without a replica identity refuses it
  if not push_listener.adopted('push_devices') then
    alter table public.push_devices
      alter column user_id set not null,
      add constraint push_devices_platform_check check (platform in ('android', 'ios', 'web')),
      add constraint push_devices_token_check check (length(token) between 1 and 4096),
      enable row level security;
  end if;

  if to_regclass('public.push_recipients') is null then
    create view public.push_recipients with (security_invoker = true) as
      select user_id, token, platform from public.push_devices where disabled_at is null;
    comment on view public.push_recipients is
      'Every live device of every user. An application that keeps tokens in a table of its own replaces it, together with push_disable_token: create or replace view public.push_recipients with (security_invoker = true) as select id as user_id, fcm_token as token, null::text as platform from public.profiles where fcm_token is not null.';
  end if;
  if to_regprocedure('public.push_disable_token(text, text)') is null then
    create function public.push_disable_token(p_token text, p_reason text) returns void
      language sql set search_path = pg_catalog, pg_temp
      as 'update public.push_devices
            set disabled_at = now(), disabled_reason = p_reason, updated_at = now()
            where token = p_token and disabled_at is null';
    comment on function public.push_disable_token(text, text) is
      'push-listener calls this when FCM reports that a registration token is no longer valid. Replace it together with push_recipients.';
    revoke execute on function public.push_disable_token(text, text) from public;
  end if;
end
$$;
