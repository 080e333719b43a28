begin;
select plan(55);
delete from public.push_notifications; -- taken back at the end

set local role service_role;
create temporary table made (name text, id uuid) on commit drop;
insert into made values ('plain', public.enqueue_push(p_device_token => 'token', p_title => 'Hello'));
insert into made values ('all', public.enqueue_push(
  p_user_id => 'a0000000-0000-0000-0000-00000000000a', p_title => 'Title', p_body => 'Body', p_data => '{"a": 1}',
  p_channel => 'news', p_priority => 'high', p_image => 'https://example.com/i.png', p_options => '{"android": {"ttl": "60s"}}',
  p_collapse_key => 'collapse', p_idempotency_key => 'once', p_expires_at => now() + interval '2 h', p_send_at => now() + interval '1 h'));
insert into made values ('again', public.enqueue_push(p_device_token => 'other', p_title => 'Other', p_idempotency_key => 'once'));
insert into made values ('topic', public.enqueue_push(p_topic => '/topics/news', p_data => '{"a": "b"}'));
insert into made values ('condition', public.enqueue_push(p_condition => '''a'' in topics && ''b'' in topics', p_title => 'C'));
insert into made values ('past', public.enqueue_push(p_device_token => 'token', p_title => 'P', p_send_at => now() - interval '1 h'));
insert into made values ('device of a user', public.enqueue_push(p_device_token => 'token', p_title => 'D', p_user_id => 'a0000000-0000-0000-0000-00000000000a'));
insert into made values ('longest', public.enqueue_push(p_device_token => 'token', p_title => repeat('x', 4096)));

select is((select id from made where name = 'again'), (select id from made where name = 'all'), 'the same key is the same push');
reset role;
select is(count(*)::integer, 7, 'and makes no second row') from public.push_notifications;
select results_eq(
  $$select p.device_token::text, p.title::text, p.body::text, p.data::jsonb, p.priority::text, p.status::text, p.next_attempt_at, p.retry_count::integer
      from public.push_notifications p join made using (id) where name = 'plain'$$,
  $$values ('token', 'Hello', null::text, null::jsonb, 'normal', 'pending', now(), 0)$$, 'what is not given has its default');
select results_eq(
  $$select p.user_id::text, p.title::text, p.body::text, p.data::jsonb, p.channel::text, p.priority::text, p.image::text, p.options,
           p.collapse_key::text, p.idempotency_key::text, p.expires_at, p.next_attempt_at
      from public.push_notifications p join made using (id) where name = 'all'$$,
  $$values ('a0000000-0000-0000-0000-00000000000a', 'Title', 'Body', '{"a": 1}'::jsonb, 'news', 'high', 'https://example.com/i.png',
            '{"android": {"ttl": "60s"}}'::jsonb, 'collapse', 'once', now() + interval '2 h', now() + interval '1 h')$$,
  'every column can be given');
select is(next_attempt_at, now(), 'a time that has passed is now: nobody jumps the queue')
  from public.push_notifications join made using (id) where name = 'past';
select is(topic, '/topics/news', 'a topic') from public.push_notifications join made using (id) where name = 'topic';
select is(condition, '''a'' in topics && ''b'' in topics', 'a condition') from public.push_notifications join made using (id) where name = 'condition';
select is(user_id, 'a0000000-0000-0000-0000-00000000000a', 'beside a device its user may be named')
  from public.push_notifications join made using (id) where name = 'device of a user';

set local role service_role;
select lives_ok(format('select public.enqueue_push(p_device_token => ''a'', %s)', arguments), description)
  from (values
    ($$p_options => '{"apns": {"payload": {"aps": {"badge": 3}}}}'$$, 'a badge alone is a push'),
    ($$p_options => '{"apns": {"payload": {"aps": {"event": "end", "content-state": {}}}, "live_activity_token": "t"}}'$$, 'so is a live activity'),
    ($$p_options => '{"android": {"notification": {"title_loc_key": "k"}}}'$$, 'so is a notification of Android alone'),
    ($$p_options => '{"webpush": {"data": {"a": "b"}}}'$$, 'so is data for the web alone'),
    ($$p_body => 'B', p_options => '{"android": {"notification": {"title_loc_key": "k"}}}'$$, 'a title may be in the options'),
    ($$p_title => 'T', p_options => '{"android": null, "apns": null, "webpush": null, "fcm_options": null}'$$, 'a platform may be null')
  ) as good(arguments, description);
select throws_ok(format('select public.enqueue_push(%s)', arguments), '22023', null, description)
  from (values
    ('', 'no target'),
    ($$p_title => 'x'$$, 'a title and no target'),
    ($$p_title => 'x', p_device_token => 'a', p_topic => 'b'$$, 'two targets'),
    ($$p_title => 'x', p_condition => 'a', p_topic => 'b'$$, 'two targets'),
    ($$p_title => 'x', p_topic => 'b', p_user_id => gen_random_uuid()$$, 'a topic and a user'),
    ($$p_title => 'x', p_device_token => ''$$, 'an empty token'),
    ($$p_title => 'x', p_device_token => 'a b'$$, 'a token with a blank'),
    ($$p_title => 'x', p_device_token => 'tök'$$, 'a token that is not ASCII'),
    ($$p_title => 'x', p_device_token => repeat('x', 4097)$$, 'an endless token'),
    ($$p_title => 'x', p_topic => 'no blanks'$$, 'a topic with a blank'),
    ($$p_title => 'x', p_topic => ''$$, 'an empty topic'),
    ($$p_title => 'x', p_condition => '  '$$, 'a blank condition'),
    ($$p_title => 'x', p_condition => 'ä in topics'$$, 'a condition that is not ASCII'),
    ($$p_title => 'x', p_condition => $c$'a' in topics || 'b' in topics || 'c' IN topics || 'd' in topics || 'e' in topics || 'f' in topics$c$ $$, 'six topics'),
    ($$p_title => 'x', p_device_token => 'a', p_priority => 'urgent'$$, 'an unknown priority'),
    ($$p_title => 'x', p_device_token => 'a', p_data => '[1]'$$, 'data that is an array'),
    ($$p_title => 'x', p_device_token => 'a', p_data => '"{}"'$$, 'data encoded twice'),
    ($$p_title => 'x', p_device_token => 'a', p_data => 'null'$$, 'data that is the null of JSON'),
    ($$p_title => 'x', p_device_token => 'a', p_data => '{"googlefoo": "b"}'$$, 'a reserved key'),
    ($$p_title => 'x', p_device_token => 'a', p_data => '{"from": "b"}'$$, 'a reserved key'),
    ($$p_title => 'x', p_device_token => 'a', p_options => '[]'$$, 'options that are an array'),
    ($$p_title => 'x', p_device_token => 'a', p_options => '{"ios": {}}'$$, 'an unknown platform'),
    ($$p_title => 'x', p_device_token => 'a', p_options => '{"apns": 1}'$$, 'a platform that is no object'),
    ($$p_title => 'x', p_device_token => 'a', p_options => jsonb_build_object('apns', jsonb_build_object('a', repeat('x', 32768)))$$, 'endless options'),
    ($$p_device_token => 'a', p_title => '', p_data => '{}'$$, 'nothing to send'),
    ($$p_device_token => 'a', p_options => '{"apns": {"payload": {}, "headers": {"apns-priority": "5"}}, "android": null}'$$, 'options that show nothing'),
    ($$p_device_token => 'a', p_body => 'x'$$, 'a body without a title'),
    ($$p_device_token => 'a', p_title => repeat('x', 4097)$$, 'more than a device gets'),
    ($$p_device_token => 'a', p_title => repeat('é', 2049)$$, 'more bytes than a device gets'),
    ($$p_topic => 'a', p_title => 'x', p_data => jsonb_build_object('k', repeat('x', 2048))$$, 'more than a topic gets'),
    ($$p_device_token => 'a', p_data => jsonb_build_object('k', to_jsonb(array_fill(1, array[20000])))$$, 'data that is endless, though not in strings'),
    ($$p_title => 'x', p_device_token => 'a', p_channel => repeat('x', 1001)$$, 'an endless channel'),
    ($$p_title => 'x', p_device_token => 'a', p_image => repeat('x', 2049)$$, 'an endless image'),
    ($$p_title => 'x', p_device_token => 'a', p_collapse_key => repeat('x', 1001)$$, 'an endless collapse key'),
    ($$p_title => 'x', p_device_token => 'a', p_idempotency_key => ''$$, 'an empty key'),
    ($$p_title => 'x', p_device_token => 'a', p_idempotency_key => repeat('x', 256)$$, 'an endless key'),
    ($$p_title => 'x', p_device_token => 'a', p_send_at => 'infinity'$$, 'never'),
    ($$p_title => 'x', p_device_token => 'a', p_expires_at => now()$$, 'over already')
  ) as bad(arguments, description);
reset role;
select is(count(*)::integer, 13, 'what is refused is not there') from public.push_notifications;

-- An adopted table may insist on texts.
update public.push_notifications set title = coalesce(title, ''), body = coalesce(body, '');
alter table public.push_notifications alter column title set not null, alter column body set not null;
set local role service_role;
select lives_ok($$select public.enqueue_push(p_device_token => 'token', p_data => '{"a": "b"}', p_idempotency_key => 'data only')$$,
  'a data message can be put into such a table');
reset role;
select is(title || body, '', 'with texts that show nothing') from public.push_notifications where idempotency_key = 'data only';

select * from finish();
rollback;
