-- push_delivery_logs: one row for each attempt at each device, and one for each receipt.
--
-- Where push-listener creates the table, it refers to push_notifications: a log ends with its push, and PostgREST embeds
-- by the foreign key. Its check locks the row of the push once more for each attempt; docs/retention.md has what that
-- costs. An adopted table is left without one: its logs may be older than what the queue still holds.

create table if not exists public.push_delivery_logs (
  id uuid primary key
);

alter table public.push_delivery_logs
  add column if not exists push_id uuid,
  add column if not exists device_token text,
  add column if not exists status text not null default 'unknown',
  add column if not exists details jsonb,
  add column if not exists created_at timestamptz not null default now();

do $$
begin
  perform push_listener.adopt(
    'push_delivery_logs',
    p_nullable => '{device_token}', -- an attempt at a topic has no device
    p_defaults => '{"id": "gen_random_uuid()", "created_at": "now()"}',
    p_words => '{"status": ["sent", "delivered", "failed", "opened", "clicked", "unknown"]}',
    p_lengths => '{"status": 9, "device_token": 4096}');

  -- Rows are added and later purged. Statistics and the visibility map should follow sooner than after a fifth of the
  -- table.
  perform push_listener.set_storage_defaults('push_delivery_logs', '{
    "autovacuum_vacuum_scale_factor": "0.05", "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02"}');

  if not push_listener.adopted('push_delivery_logs') then
    alter table public.push_delivery_logs
      -- As in push_notifications: ids that begin with the time.
      alter column id set default encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        placing substring(int8send((1000 * extract(epoch from clock_timestamp()))::bigint) from 3) from 1
      ), 52, 1), 53, 1), 'hex')::uuid,
      alter column push_id set not null,
      alter column details set default '{}',
      add constraint push_delivery_logs_status_check check (status in
        ('sent', 'delivered', 'failed', 'opened', 'clicked', 'unknown')),
      enable row level security;
    -- A key that is deferrable, as an application may have it, cannot be referred to.
    if exists (
      select from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attname = 'id'
        where i.indrelid = 'public.push_notifications'::regclass and i.indisunique and i.indimmediate and i.indisvalid
          and i.indpred is null and i.indnkeyatts = 1 and i.indkey[0] = a.attnum
    ) then
      alter table public.push_delivery_logs
        add constraint push_delivery_logs_push_id_fkey
        foreign key (push_id) references public.push_notifications (id) on delete cascade;
    end if;
    comment on column public.push_delivery_logs.status is
      'sent: FCM accepted it, which is not delivery. failed: FCM refused it, or could not be reached. delivered, opened, clicked: a receipt from the device.';
  end if;
end
$$;
