-- migrate: loses select * from push_listener.lost_fids()
-- The functions whose arguments have changed stay, as every function that an earlier step creates.
drop function if exists public.enqueue_pushes(jsonb[]);
drop function if exists public.get_push(uuid);
drop function if exists public.record_delivery_receipts(jsonb[]);
drop function if exists push_listener.record_receipt(uuid, text, text, jsonb, timestamptz);
drop function if exists push_listener.receipt_fault(jsonb);
drop function if exists push_listener.telemetry_answer(uuid, integer, integer[], jsonb[], uuid);
drop table if exists push_listener.telemetry_batches;

do $$
declare
  v_policy text;
begin
  if not push_listener.drops_fid() then
    return;
  end if;
  -- The policy for users names the column. It is made again without it.
  if exists (select from pg_policy p
               where p.polrelid = 'public.push_notifications'::regclass and p.polname = 'push_listener_own') then
    drop policy push_listener_own on public.push_notifications;
    alter table public.push_notifications drop column fid;
    for v_policy in
      select format('create policy %I on %s for %s to %I %s', p.name, p.relation, p.command, p.role, p.condition)
        from push_listener.policies() p
        where p.relation = 'public.push_notifications'::regclass and p.name = 'push_listener_own'
    loop
      execute v_policy;
    end loop;
    perform push_listener.mark_policies();
  else
    alter table public.push_notifications drop column fid;
  end if;
end
$$;
drop function if exists push_listener.lost_fids();
drop function if exists push_listener.drops_fid();
