begin;
select plan(27);

create temporary table answer (name text primary key, value jsonb) on commit drop;
grant all on answer to authenticated, service_role;

set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
insert into answer select 'good', public.flush_telemetry(array[
  '{"type": "start", "message": "cold", "meta": {"ms": 12}, "timestamp": "2026-01-02T03:04:05.678+01:00"}',
  '{"type": "tap", "message": "", "timestamp": "2026-01-02 03:04:05", "user_id": "A0000000-0000-0000-0000-00000000000A", "more": 1}',
  '{"type": "tap", "message": "x", "meta": null, "timestamp": null, "user_id": null}'
]::jsonb[]);
insert into answer select 'mixed', public.flush_telemetry(array[
  '{"type": "ok", "message": "stays"}', null, 'null', '7', '"text"', '[]', '{}',
  '{"type": 1, "message": "x"}', '{"type": "", "message": "x"}', '{"type": "x"}', '{"type": "x", "message": {}}',
  '{"type": "x", "message": "x", "meta": "m"}', '{"type": "x", "message": "x", "timestamp": "2026-02-30T00:00:00Z"}',
  '{"type": "x", "message": "x", "timestamp": "now"}', '{"type": "x", "message": "x", "timestamp": 1767225600}',
  '{"type": "x", "message": "x", "user_id": "b0000000-0000-0000-0000-00000000000b"}',
  '{"type": "x", "message": "x", "user_id": "me"}', '{"type": "ok", "message": "stays too"}',
  jsonb_build_object('type', 'x', 'message', repeat('x', 16384)), jsonb_build_object('type', repeat('x', 101), 'message', '')
]::jsonb[]);
insert into answer select 'nested', public.flush_telemetry(
  array[array['{"type": "x", "message": "x"}'::jsonb, '1'], array['2'::jsonb, '{"type": "x", "message": "x"}']]);
insert into answer select 'empty', public.flush_telemetry('{}');

select is(value -> 'accepted', '3', 'good elements are stored') from answer where name = 'good';
select is(value -> 'rejected', '[]', 'and none is rejected') from answer where name = 'good';
select is(value -> 'accepted', '2', 'bad ones do not take the good ones with them') from answer where name = 'mixed';
select is((select string_agg(r ->> 'index', ' ') from jsonb_array_elements(value -> 'rejected') r),
          '1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 18 19', 'each is named by its index') from answer where name = 'mixed';
select is((select string_agg(distinct r ->> 'reason', '; ' order by r ->> 'reason') from jsonb_array_elements(value -> 'rejected') r),
  'larger than 16384 bytes; message must be a string; meta must be a JSON object; not a JSON object; timestamp must be a time in ISO 8601; type must be a string of 1 to 100 characters; user_id is not yours: leave it out; user_id must be a UUID',
  'with what is wrong with it') from answer where name = 'mixed';
select is(value - 'batch_id',
  '{"accepted": 0, "rejected": [{"index": 0, "reason": "not a JSON object"}, {"index": 1, "reason": "not a JSON object"}]}',
  'arrays in the array are not taken apart') from answer where name = 'nested';
select is(value - 'batch_id', '{"accepted": 0, "rejected": []}', 'nothing is nothing') from answer where name = 'empty';

select throws_ok('select public.flush_telemetry(null)', '22023', null, 'null is no array');
select throws_ok($$select public.flush_telemetry(array_fill('{"type": "x", "message": "x"}'::jsonb, array[1001]))$$,
  '22023', 'p_payloads has 1001 elements, and at most 1000 are taken at once', 'a batch has a size');
select throws_ok($$select public.flush_telemetry(array_fill(jsonb_build_object('type', 'x', 'message', repeat('x', 10000)), array[300]))$$,
  'PT413', 'p_payloads is larger than 2 MiB as jsonb', 'and so do all of its elements together');
select is(public.flush_telemetry(array['{"type": "x", "message": "x", "meta": {"a": 1e400}}', '{"type": "x", "message": "x", "meta": {"a": 0e-401}}']::jsonb[]) - 'batch_id',
  '{"accepted": 0, "rejected": [{"index": 0, "reason": "has a number of more than 400 digits"}, {"index": 1, "reason": "has a number of more than 400 digits"}]}',
  'a short number can be a long text');
set local request.jwt.claims = '{}';
select throws_ok($$select public.flush_telemetry('{}')$$, '42501', null, 'not without a user');
set local role anon;
select throws_ok($$select public.flush_telemetry('{}')$$, '42501', null, 'not for anon');

set local role service_role;
insert into answer select 'service', public.flush_telemetry(array[
  '{"type": "s", "message": "x", "user_id": "b0000000-0000-0000-0000-00000000000b"}', '{"type": "s", "message": "y"}']::jsonb[]);

reset role;
select results_eq(
  $$select t.type::text, t.message::text, t.meta, t.timestamp from public.telemetry_logs t, answer a
      where a.name = 'good' and t.batch_id = (a.value ->> 'batch_id')::uuid order by t.timestamp, t.message$$,
  $$values ('start', 'cold', '{"ms": 12}'::jsonb, '2026-01-02T02:04:05.678Z'::timestamptz),
           ('tap', '', null, '2026-01-02T03:04:05Z'), ('tap', 'x', null, now())$$,
  'as they were given; a time without a zone is UTC, no time is now');
select is(count(*)::integer, 3, 'as the caller''s own, with the time at which they were stored') from public.telemetry_logs t, answer a
  where a.name = 'good' and t.batch_id = (a.value ->> 'batch_id')::uuid
    and user_id = 'a0000000-0000-0000-0000-00000000000a' and processed_at = now() and created_at = now();
select results_eq(
  $$select t.message::text from public.telemetry_logs t, answer a
      where a.name = 'mixed' and t.batch_id = (a.value ->> 'batch_id')::uuid order by 1$$,
  array['stays', 'stays too'], 'of a mixed batch the good are there');
select results_eq(
  $$select t.message::text, t.user_id::text from public.telemetry_logs t, answer a
      where a.name = 'service' and t.batch_id = (a.value ->> 'batch_id')::uuid order by 1$$,
  $$values ('x', 'b0000000-0000-0000-0000-00000000000b'), ('y', null)$$, 'a service says whose it is, or nobody''s');
select is(count(distinct value ->> 'batch_id')::integer, 5, 'every batch has an id of its own') from answer;

-- A user may send so much within an hour.
set local role authenticated;
set local request.jwt.claims = '{"sub": "c0000000-0000-0000-0000-00000000000c"}';
select is(public.flush_telemetry(array_fill('null'::jsonb, array[1000])) -> 'accepted', '0', 'a full batch is taken');
reset role;
update push_listener.telemetry_use set records_until = records_until + 48 * interval '72 s'
  where user_id = 'c0000000-0000-0000-0000-00000000000c';
set local role authenticated;
select is(public.flush_telemetry(array_fill('null'::jsonb, array[1000])) -> 'accepted', '0', 'and the fiftieth');
select throws_ok($$select public.flush_telemetry(array['null'::jsonb])$$, 'PT429',
  'this user has sent too much telemetry: 50000 elements and 32 MiB are taken within an hour', 'and then no more');
set local request.jwt.claims = '{"sub": "d0000000-0000-0000-0000-00000000000d"}';
select lives_ok($$select public.flush_telemetry(array['null'::jsonb])$$, 'other users may go on');
reset role;
update push_listener.telemetry_use set records_until = records_until - interval '72 ms'
  where user_id = 'c0000000-0000-0000-0000-00000000000c';
set local role authenticated;
set local request.jwt.claims = '{"sub": "c0000000-0000-0000-0000-00000000000c"}';
select lives_ok($$select public.flush_telemetry(array['null'::jsonb])$$, 'it comes back as time passes');
reset role;

-- An adopted table may have rules of its own.
alter table public.telemetry_logs alter column type type varchar(5),
  add constraint no_swearing check (message <> 'damn') not valid;
set local role service_role;
insert into answer select 'adopted', public.flush_telemetry(array[
  '{"type": "12345", "message": "x"}', '7', '{"type": "123456", "message": "x"}', '{"type": "t", "message": "damn"}',
  '{"type": "t", "message": "y"}']::jsonb[]);
reset role;
select is(value -> 'accepted', '2', 'what the table itself refuses is left out too') from answer where name = 'adopted';
select is((select string_agg(r ->> 'index', ' ' order by (r -> 'index')::integer) from jsonb_array_elements(value -> 'rejected') r), '1 2 3',
          'and named') from answer where name = 'adopted';
select matches(value -> 'rejected' -> 1 ->> 'reason', 'too long', 'with its reason') from answer where name = 'adopted';
select results_eq(
  $$select t.message::text from public.telemetry_logs t, answer a
      where a.name = 'adopted' and t.batch_id = (a.value ->> 'batch_id')::uuid order by 1$$,
  array['x', 'y'], 'the rest is there, once');

select * from finish();
rollback;
