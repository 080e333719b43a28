-- A batch with an id is stored once, however often it is sent.
begin;
select plan(18);

create temporary table answer (name text primary key, value jsonb) on commit drop;
grant all on answer to authenticated, service_role;
create function pg_temp.flush(batch text, variadic payloads jsonb[]) returns jsonb language sql as
  $$ select public.flush_telemetry(p_payloads => payloads, p_batch_id => batch::uuid) $$;

set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
insert into answer select 'first', pg_temp.flush('00000000-0000-0000-0000-000000000001', '{"type": "a", "message": "x"}', '7', '{"type": "b", "message": "y"}');
insert into answer select 'again', pg_temp.flush('00000000-0000-0000-0000-000000000001', '{"type": "a", "message": "x"}', '7', '{"type": "b", "message": "y"}');
insert into answer select 'none', pg_temp.flush(null, '{"type": "a", "message": "x"}');
insert into answer select 'empty', public.flush_telemetry('{}', '00000000-0000-0000-0000-000000000002');
set local request.jwt.claims = '{"sub": "b0000000-0000-0000-0000-00000000000b"}';
insert into answer select 'bob', pg_temp.flush('00000000-0000-0000-0000-000000000001', '{"type": "a", "message": "bob"}');
set local role service_role;
set local request.jwt.claims = '{}';
insert into answer select 'service', pg_temp.flush('00000000-0000-0000-0000-000000000001', '{"type": "a", "message": "s"}');
insert into answer select 'service again', pg_temp.flush('00000000-0000-0000-0000-000000000001', '{"type": "a", "message": "s"}');
reset role;

select is(value, '{"batch_id": "00000000-0000-0000-0000-000000000001", "accepted": 2, "rejected": [{"index": 1, "reason": "not a JSON object"}]}',
          'a batch under the caller''s id') from answer where name = 'first';
select is(value, (select value from answer where name = 'first'), 'again: the same answer') from answer where name = 'again';
select results_eq($$select message from public.telemetry_logs where batch_id = '00000000-0000-0000-0000-000000000001' order by 1$$,
  array['bob', 's', 'x', 'y'], 'and no second row; the ids of one caller are not those of another');
select isnt(value ->> 'batch_id', null, 'without an id a batch gets one') from answer where name = 'none';
select is(value -> 'accepted', '0', 'an empty batch may have one') from answer where name = 'empty';
select is(value -> 'accepted', '1', 'another user''s') from answer where name = 'bob';
select is(value, (select value from answer where name = 'service'), 'a service''s too') from answer where name = 'service again';
select is(count(*)::integer, 4, 'what is remembered') from push_listener.telemetry_batches;

-- What the table itself refuses is remembered as well.
alter table public.telemetry_logs add constraint no_swearing check (message <> 'damn') not valid;
set local role service_role;
insert into answer select 'refused', pg_temp.flush('00000000-0000-0000-0000-000000000003', '7', '{"type": "a", "message": "damn"}', '{"type": "a", "message": "z"}');
insert into answer select 'refused again', pg_temp.flush('00000000-0000-0000-0000-000000000003', '7', '{"type": "a", "message": "damn"}', '{"type": "a", "message": "z"}');
reset role;
select is(value -> 'accepted', '1', 'one of three') from answer where name = 'refused';
select is(value -> 'accepted', '1', 'the same again') from answer where name = 'refused again';
select is((select jsonb_agg(r -> 'index') from jsonb_array_elements(value -> 'rejected') r), '[0, 1]', 'and the same places') from answer where name = 'refused again';
select is(value -> 'rejected' -> 1 ->> 'reason', 'telemetry_logs does not take it', 'whose reason is not remembered') from answer where name = 'refused again';

-- It counts as ten elements at least, so that no user fills the table of the ids: 5000 batches an hour.
set local role authenticated;
set local request.jwt.claims = '{"sub": "c0000000-0000-0000-0000-00000000000c"}';
insert into answer select 'small', pg_temp.flush(gen_random_uuid()::text, 'null');
reset role;
select is(records_until - now(), interval '1 hour' / 5000, 'a small batch with an id counts as ten elements')
  from push_listener.telemetry_use where user_id = 'c0000000-0000-0000-0000-00000000000c';
update push_listener.telemetry_use set records_until = now() + interval '1 hour' - interval '1 hour' / 10000 where user_id = 'c0000000-0000-0000-0000-00000000000c';
set local role authenticated;
select throws_ok($$select pg_temp.flush(gen_random_uuid()::text, 'null')$$, 'PT429', null, 'and there is a limit');
select lives_ok($$select pg_temp.flush(null, 'null')$$, 'which one without an id is below');

-- They are kept for seven days. One call in a hundred forgets them.
reset role;
update push_listener.telemetry_batches set stored_at = now() - interval '8 d' where user_id = 'a0000000-0000-0000-0000-00000000000a';
select push_listener.forget_telemetry_use() from generate_series(1, 2500);
select is(count(*)::integer, 0, 'those of a week ago are forgotten') from push_listener.telemetry_batches where stored_at < now() - interval '7 d';
select is(count(*)::integer, 4, 'the others stay') from push_listener.telemetry_batches;
-- Services have no limit, and may be the only ones that send telemetry.
update push_listener.telemetry_batches set stored_at = now() - interval '8 d';
set local role service_role;
set local request.jwt.claims = '{}';
do $$ begin for i in 1 .. 2500 loop perform public.flush_telemetry('{}', gen_random_uuid()); end loop; end $$;
reset role;
select is(count(*)::integer, 0, 'so their calls forget them too') from push_listener.telemetry_batches where stored_at < now() - interval '7 d';

select * from finish();
rollback;
