-- The status of an order changes, and its customer gets a push: a trigger, in the transaction of the change.
--
-- A courier may change the status of the courier's own orders. This causes a push, but it is the trigger that says to
-- which user and with which text: signed-in users can call neither the trigger's function nor enqueue_push.
-- Run it as the owner of the tables (on Supabase: postgres), after orders.sql.

create function public.tell_customer() returns trigger
  -- The right to enqueue comes from the function's owner. With search_path pinned, and every name qualified, the
  -- caller cannot slip in objects of another schema.
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform public.enqueue_push(
    p_user_id => new.customer_id,
    p_title => case new.status
      when 'ready' then 'Your order is ready'
      when 'on the way' then 'Your order is on the way'
      else 'Your order has arrived'
    end,
    p_data => jsonb_build_object('order', new.id::text, 'status', new.status),
    p_priority => 'high',
    p_channel => 'orders',
    p_expires_at => now() + interval '1 hour',
    -- One push for each order and status, even if the status goes back and forth.
    p_idempotency_key => 'order-' || new.id || '-' || new.status
  );
  return null;
end
$$;
revoke execute on function public.tell_customer() from public, anon, authenticated;

create trigger tell_customer
  after update of status on public.orders
  for each row
  when (new.status is distinct from old.status and new.status <> 'cooking')
  execute function public.tell_customer();

-- What couriers may do. Only the column status: with customer_id they could choose who gets the push.
revoke all on public.orders from anon, authenticated;
grant select on public.orders to authenticated;
grant update (status) on public.orders to authenticated;
create policy "couriers see their orders" on public.orders for select to authenticated
  using (courier_id = (select auth.uid()));
create policy "couriers update their orders" on public.orders for update to authenticated
  using (courier_id = (select auth.uid())) with check (courier_id = (select auth.uid()));
