-- migrate: loses select * from push_listener.lost_counts()
drop function if exists public.get_push_delivery_stats(integer);
drop function if exists push_listener.daily_totals(integer);
drop trigger if exists push_listener_count_receipts on public.push_delivery_logs;
drop function if exists push_listener.count_receipts();
drop trigger if exists push_listener_inserted on public.push_notifications;
drop function if exists push_listener.inserted();
drop trigger if exists push_listener_count_changed on public.push_notifications;
drop function if exists push_listener.count_changed();
drop function if exists push_listener.lost_counts();
drop view if exists push_listener.ended;
drop function if exists push_listener.add_counts(push_listener.daily_counts);
drop table if exists push_listener.daily_counts;
delete from push_listener.adoption_record where kind = 'counted';
