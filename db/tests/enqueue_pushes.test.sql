begin;
select plan(27);
delete from public.push_notifications; -- taken back at the end

create temporary table made (call text, place integer, id uuid, is_new boolean, error text) on commit drop;
grant all on made to service_role;

set local role service_role;
insert into made select 'all', * from public.enqueue_pushes(array[
  '{"device_token": "token", "title": "Hello"}',
  '{"fid": "dIsVQ2QVRT-TWzQVxvNYhM", "title": "F", "user_id": "a0000000-0000-0000-0000-00000000000a"}',
  jsonb_build_object('user_id', 'A0000000-0000-0000-0000-00000000000A', 'title', 'Title', 'body', 'Body', 'data', '{"a": 1}'::jsonb,
    'channel', 'news', 'priority', 'high', 'image', 'https://example.com/i.png', 'options', '{"android": {"ttl": "60s"}}'::jsonb,
    'collapse_key', 'collapse', 'idempotency_key', 'once', 'expires_at', now() + interval '2 h', 'send_at', now() + interval '1 h'),
  '{"topic": "news", "title": "again", "idempotency_key": "once"}',
  '{"topic": "news", "title": "T", "body": null, "data": null, "options": null, "send_at": null, "priority": null}',
  '{"device_token": "token", "title": "zone", "send_at": "2999-01-02 03:04"}'
]::jsonb[]);
select is(string_agg(concat_ws(' ', place, is_new, id is not null, error), ', ' order by place),
          '0 t t, 1 t t, 2 t t, 3 f t, 4 t t, 5 t t', 'one row for each, in order') from made;
select is((select id from made where place = 3), (select id from made where place = 2), 'a key twice in a call is one push');
reset role;
select results_eq(
  $$select p.device_token::text, p.title::text, p.body::text, p.data::jsonb, p.priority::text, p.status::text, p.next_attempt_at,
           p.retry_count::integer
      from public.push_notifications p join made using (id) where place = 0$$,
  $$values ('token', 'Hello', null::text, null::jsonb, 'normal', 'pending', now(), 0)$$, 'what is not given has its default');
select results_eq(
  $$select p.fid, p.device_token::text, p.user_id::text from public.push_notifications p join made using (id) where place = 1$$,
  $$values ('dIsVQ2QVRT-TWzQVxvNYhM', null::text, 'a0000000-0000-0000-0000-00000000000a')$$, 'an installation id, with its user');
select results_eq(
  $$select p.user_id::text, p.title::text, p.body::text, p.data::jsonb, p.channel::text, p.priority::text, p.image::text, p.options,
           p.collapse_key::text, p.idempotency_key::text, p.expires_at, p.next_attempt_at
      from public.push_notifications p join made using (id) where place = 2$$,
  $$values ('a0000000-0000-0000-0000-00000000000a', 'Title', 'Body', '{"a": 1}'::jsonb, 'news', 'high', 'https://example.com/i.png',
            '{"android": {"ttl": "60s"}}'::jsonb, 'collapse', 'once', now() + interval '2 h', now() + interval '1 h')$$,
  'every key can be given');
select is(next_attempt_at, '2999-01-02T03:04Z', 'a time without a zone is UTC') from public.push_notifications join made using (id) where place = 5;
select is(priority, 'normal', 'null is not given') from public.push_notifications join made using (id) where place = 4;
select is(count(*)::integer, 5, 'and nothing else is there') from public.push_notifications;

set local role service_role;
insert into made select 'again', * from public.enqueue_pushes(array[
  '{"topic": "a", "title": "x", "idempotency_key": "once"}', '{"topic": "a", "title": "x", "idempotency_key": "new"}',
  '{"topic": "a b", "title": "x", "idempotency_key": "bad first"}', '{"topic": "a", "title": "x", "idempotency_key": "bad first"}',
  '{"topic": "a", "title": "x", "idempotency_key": "new"}']::jsonb[]);
select is(string_agg(concat_ws(' ', place, is_new, id is not null), ', ' order by place), '0 f t, 1 t t, 2 f f, 3 t t, 4 f t',
          'a key of the table, of this call, and of a push that is refused') from made where call = 'again';
select is((select id from made where call = 'again' and place = 0), (select id from made where call = 'all' and place = 2), 'its id');
select is((select id from made where call = 'again' and place = 4), (select id from made where call = 'again' and place = 1), 'its id');

insert into made select 'bad', * from public.enqueue_pushes(array[
  null, 'null', '7', '"x"', '[]', '{"title": 1, "topic": "a"}', '{"titel": "x", "topic": "a"}', '{"p_title": "x"}', '{"SECRET token": 1}',
  '{"topic": "a", "title": "x", "send_at": "2026-02-30T00:00:00Z"}', '{"topic": "a", "title": "x", "send_at": "infinity"}',
  '{"topic": "a", "title": "x", "expires_at": "now"}', '{"topic": "a", "title": "x", "send_at": "2026-01-01T24:00:00Z"}',
  '{"topic": "a", "title": "x", "send_at": "2026-01-01T00:00:00+99"}', '{"topic": "a", "title": "x", "send_at": "0000-01-01T00:00:00Z"}',
  '{"topic": "a", "title": "x", "send_at": 1767225600}', '{"user_id": "me", "title": "x"}', '{"fid": "", "title": "x"}',
  '{"fid": "a", "device_token": "b", "title": "x"}', jsonb_build_object('topic', 'a', 'title', repeat('x', 500000)),
  -- More than a gigabyte as text.
  jsonb_build_object('topic', 'a', 'title', (select jsonb_agg('1e131071'::jsonb) from generate_series(1, 20000))),
  jsonb_build_object('topic', 'a', 'data', jsonb_build_object('a', (select jsonb_agg('1e131071'::jsonb) from generate_series(1, 20000)))),
  '{"topic": "a", "title": "good"}']::jsonb[]);
select results_eq($$select place, error from made where call = 'bad' order by place$$, $$values
  (0, 'this is not a JSON object'), (1, 'this is not a JSON object'), (2, 'this is not a JSON object'), (3, 'this is not a JSON object'),
  (4, 'this is not a JSON object'), (5, 'title must be a string'),
  (6, 'there is no key titel: the keys are those of enqueue_push without p_'),
  (7, 'there is no key p_title: the keys are those of enqueue_push without p_'),
  (8, 'there is a key that no push has: the keys are those of enqueue_push without p_'),
  (9, 'send_at must be a time in ISO 8601'), (10, 'send_at must be a time in ISO 8601'), (11, 'expires_at must be a time in ISO 8601'),
  (12, 'send_at must be a time in ISO 8601'), (13, 'send_at must be a time in ISO 8601'), (14, 'send_at must be a time in ISO 8601'),
  (15, 'send_at must be a string'), (16, 'user_id must be a UUID'), (17, 'fid must be a Firebase installation id, as the app got it'),
  (18, 'set exactly one of device_token, fid, topic, condition and user_id (beside device_token or fid, user_id says whose device it is)'),
  (19, 'this is far too large: more than 400000 bytes as jsonb'), (20, 'title must be a string'),
  (21, 'data or options has a number of more than 400 digits'), (22, null)$$, 'each is told what is wrong with it');
select ok(id is not null and is_new, 'and the good one is there') from made where call = 'bad' and place = 22;

-- The rules of an element are those of enqueue_push.
create function pg_temp.one(p jsonb) returns text language plpgsql as $$
declare v jsonb := p;
begin
  perform public.enqueue_push(p_user_id => (p ->> 'user_id')::uuid, p_device_token => p ->> 'device_token', p_fid => p ->> 'fid',
    p_topic => p ->> 'topic', p_condition => p ->> 'condition', p_title => p ->> 'title', p_body => p ->> 'body', p_data => p -> 'data',
    p_channel => p ->> 'channel', p_priority => p ->> 'priority', p_image => p ->> 'image', p_options => p -> 'options',
    p_collapse_key => p ->> 'collapse_key', p_idempotency_key => p ->> 'idempotency_key',
    p_expires_at => (p ->> 'expires_at')::timestamptz, p_send_at => (p ->> 'send_at')::timestamptz);
  return null;
exception when invalid_parameter_value then
  return regexp_replace(sqlerrm, '\mp_', '', 'g');
end $$;
create temporary table tried on commit drop as select p from unnest(array[
  '{}', '{"title": "x"}', '{"title": "x", "device_token": "a", "topic": "b"}', '{"title": "x", "device_token": "a", "fid": "b"}',
  '{"title": "x", "topic": "b", "user_id": "a0000000-0000-0000-0000-00000000000a"}', '{"title": "x", "device_token": ""}',
  '{"title": "x", "device_token": "a b"}', '{"title": "x", "fid": "a b"}', '{"title": "x", "topic": "no blanks"}', '{"title": "x", "topic": ""}',
  '{"title": "x", "condition": "  "}', '{"title": "x", "condition": "ä in topics"}',
  '{"title": "x", "condition": "''a'' in topics || ''b'' in topics || ''c'' IN topics || ''d'' in topics || ''e'' in topics || ''f'' in topics"}',
  '{"title": "x", "device_token": "a", "priority": "urgent"}', '{"title": "x", "device_token": "a", "data": [1]}',
  '{"title": "x", "device_token": "a", "data": "{}"}', '{"title": "x", "device_token": "a", "data": {"googlefoo": "b"}}',
  '{"title": "x", "device_token": "a", "options": []}', '{"title": "x", "device_token": "a", "options": {"ios": {}}}',
  '{"title": "x", "device_token": "a", "options": {"apns": 1}}', '{"device_token": "a", "title": "", "data": {}}',
  '{"device_token": "a", "options": {"apns": {"payload": {}}, "android": null}}', '{"device_token": "a", "data": {"a": [{"b": 1e400}]}}',
  '{"device_token": "a", "data": {"a": -1e131071}}', '{"device_token": "a", "options": {"apns": {"a": 1e-401}}}',
  '{"device_token": "a", "data": {"a": [0, 1e-400, -9e399, "1e500"]}}', '{"device_token": "a", "body": "x"}',
  '{"device_token": "a", "body": "x", "options": {}}', '{"device_token": "a", "options": {"apns": {"payload": {"aps": {"badge": 3}}}}}',
  '{"title": "x", "device_token": "a", "idempotency_key": ""}', '{"title": "x", "device_token": "a", "expires_at": "1999-01-01T00:00:00Z"}',
  '{"title": "x", "device_token": "a", "send_at": "2999-01-02T00:00:00Z", "expires_at": "2999-01-01T00:00:00Z"}']::jsonb[]
  || jsonb_build_object('title', repeat('x', 4096), 'device_token', 'a') || jsonb_build_object('title', repeat('x', 4097), 'device_token', 'a')
  || jsonb_build_object('title', repeat('é', 2049), 'device_token', 'a') || jsonb_build_object('title', repeat('x', 2049), 'topic', 'a')
  || jsonb_build_object('device_token', 'a', 'data', jsonb_build_object('k', to_jsonb(array_fill(1, array[20000]))))
  || jsonb_build_object('title', 'x', 'device_token', 'a', 'options', jsonb_build_object('apns', jsonb_build_object('a', repeat('x', 32768))))
  || jsonb_build_object('title', 'x', 'device_token', repeat('a', 4097)) || jsonb_build_object('title', 'x', 'device_token', 'a', 'channel', repeat('x', 1001))
  || jsonb_build_object('title', 'x', 'device_token', 'a', 'image', repeat('x', 2049))
  || jsonb_build_object('title', 'x', 'device_token', 'a', 'collapse_key', repeat('x', 1001))
  || jsonb_build_object('title', 'x', 'device_token', 'a', 'idempotency_key', repeat('x', 256))) p;
select results_eq(
  $$select error from public.enqueue_pushes(array(select p from tried)) order by place$$, $$select pg_temp.one(p) from tried$$,
  'an element is refused as enqueue_push refuses it, in the same words');

-- What the table itself refuses, and what its triggers do.
reset role;
alter table public.push_notifications alter column channel type varchar(5), add constraint no_swearing check (title <> 'damn') not valid;
set local role service_role;
insert into made select 'adopted', * from public.enqueue_pushes(array(
  select jsonb_build_object('topic', 't', 'title', case n when 7 then 'damn' when 100 then 'damn' else 'n' || n end,
                            'channel', case n when 50 then 'too long' end, 'idempotency_key', case when n in (7, 8) then 'seven' end)
    from generate_series(0, 100) n));
select is((select string_agg(place::text, ' ' order by place) from made where call = 'adopted' and error is not null), '7 50 100',
          'what the table refuses is refused alone');
select is(count(*)::integer, 98, 'the others are there') from public.push_notifications p join made using (id) where call = 'adopted' and is_new;
select matches(error, 'no_swearing', 'with the reason') from made where call = 'adopted' and place = 7;
select ok(is_new, 'the next push of the same key takes its place') from made where call = 'adopted' and place = 8;
reset role;
create function pg_temp.meddle() returns trigger language plpgsql as $$
begin
  if new.title = 'ignored' then return null; end if;
  if new.title = 'held' then new.status := 'cancelled'; end if;
  if new.title = 'renamed' then new.id := gen_random_uuid(); end if;
  return new;
end $$;
create trigger meddle before insert on public.push_notifications for each row execute function pg_temp.meddle();
set local role service_role;
insert into made select 'meddled', * from public.enqueue_pushes(array[
  '{"topic": "a", "title": "ignored"}', '{"topic": "a", "title": "held"}', '{"topic": "a", "title": "ignored", "idempotency_key": "i"}',
  '{"topic": "a", "title": "good"}']::jsonb[]);
select results_eq($$select error from made where call = 'meddled' order by place$$, array[
  'a trigger on push_notifications has ignored the new row',
  'a trigger on push_notifications has given the new row the status ''cancelled'': it would never be sent',
  'the push with this idempotency_key is deleted, or ignored by a trigger, as soon as it is inserted', null],
  'a trigger that keeps a push from being sent is told');
select throws_ok($$select public.enqueue_push(p_topic => 'a', p_title => 'ignored')$$, '55000',
  'a trigger on push_notifications has ignored the new row', 'by enqueue_push too');
select throws_ok($$select public.enqueue_pushes(array['{"topic": "a", "title": "renamed"}'::jsonb])$$, '55000',
  'a trigger on push_notifications changes the id of new rows', 'the id of a push has to be known');

-- The call as a whole
select is_empty($$select * from public.enqueue_pushes('{}')$$, 'nothing is nothing');
select throws_ok($$select public.enqueue_pushes(null)$$, '22023', 'p_pushes must be an array of JSON objects', 'null is no array');
select throws_ok($$select public.enqueue_pushes(array_fill('{}'::jsonb, array[2, 2]))$$, '22023', null, 'an array of arrays is none either');
select throws_ok($$select public.enqueue_pushes(array_fill('{}'::jsonb, array[10001]))$$, '22023',
  'p_pushes has 10001 elements, and at most 10000 are taken at once', 'a call has a size');
set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
select throws_ok($$select public.enqueue_pushes('{}')$$, '42501', null, 'not for users');
set local role anon;
select throws_ok($$select public.enqueue_pushes('{}')$$, '42501', null, 'not for anon');

select * from finish();
rollback;
