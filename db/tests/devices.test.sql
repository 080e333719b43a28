begin;
select plan(31);

set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
select lives_ok($$select public.register_device('test-phone', 'android')$$, 'a user registers a device');
select lives_ok($$select public.register_device('test-tablet', 'ios', 'a0000000-0000-0000-0000-00000000000a')$$, 'and may say who she is');
select throws_ok($$select public.register_device('test-x', 'ios', 'b0000000-0000-0000-0000-00000000000b')$$, '42501',
  'a device can be registered for the signed-in user only', 'but not that she is somebody else');
select throws_ok($$select public.register_device('test-x', 'windows')$$, '22023', 'p_platform must be android, ios or web', 'a platform is one of three');
select throws_ok($$select public.register_device('test-x', null)$$, '22023', null, 'and not null');
select throws_ok($$select public.register_device('', 'web')$$, '22023', null, 'a token is not empty');
select throws_ok($$select public.register_device(null, 'web')$$, '22023', null, 'or null');
select throws_ok($$select public.register_device('a b', 'web')$$, '22023', null, 'or has blanks');
select throws_ok($$select public.register_device(repeat('x', 4097), 'web')$$, '22023', null, 'or is endless');
reset role;
select results_eq(
  $$select token::text, user_id::text, platform::text from public.push_recipients where token like 'test-%' order by 1$$,
  $$values ('test-phone', 'a0000000-0000-0000-0000-00000000000a', 'android'),
           ('test-tablet', 'a0000000-0000-0000-0000-00000000000a', 'ios')$$, 'both get pushes');

update public.push_devices set updated_at = now() - interval '1 h' where token = 'test-phone';
update public.push_devices set updated_at = now() - interval '2 days', disabled_at = now(), disabled_reason = 'UNREGISTERED'
  where token = 'test-tablet';
set local role authenticated;
select public.register_device('test-phone', 'android'), public.register_device('test-tablet', 'ios');
reset role;
select is(updated_at, now() - interval '1 h', 'what is known and was seen today is not written again') from public.push_devices where token = 'test-phone';
select results_eq(
  $$select updated_at, disabled_at, disabled_reason from public.push_devices where token = 'test-tablet'$$,
  $$values (now(), null::timestamptz, null::text)$$, 'a disabled token lives again');

set local role authenticated;
set local request.jwt.claims = '{"sub": "b0000000-0000-0000-0000-00000000000b"}';
select is(public.unregister_device('test-phone'), false, 'nobody unregisters a device of somebody else''s');
select public.register_device('test-phone', 'android');
reset role;
select is(user_id, 'b0000000-0000-0000-0000-00000000000b', 'a phone that changes hands belongs to who signed in last')
  from public.push_devices where token = 'test-phone';
set local role authenticated;
set local request.jwt.claims = '{"sub": "a0000000-0000-0000-0000-00000000000a"}';
select is(public.unregister_device('test-phone'), false, 'and no longer to who was there before');
select is(public.unregister_device('test-tablet'), true, 'at logout a device is forgotten');
select is(public.unregister_device('test-tablet'), false, 'once');
select throws_ok('select public.unregister_device(null)', '22023', null, 'null is no token');
set local request.jwt.claims = '{}';
select throws_ok($$select public.register_device('test-x', 'web')$$, '42501', null, 'nothing without a user');
select throws_ok($$select public.unregister_device('test-phone')$$, '42501', null, 'nothing without a user');

set local role service_role;
select throws_ok($$select public.register_device('test-x', 'web')$$, '22023', 'p_user_id must name the user of the device', 'a service says for whom');
select lives_ok($$select public.register_device('test-x', 'web', 'b0000000-0000-0000-0000-00000000000b')$$, 'and may for anybody');
select is(public.unregister_device('test-phone'), true, 'and unregister anybody''s');
reset role;
select results_eq($$select token::text from public.push_devices where token like 'test-%'$$, array['test-x'], 'one is left');

-- Anybody who is signed in may register what looks like a token, and each push to that user goes to all of them.
set local role authenticated;
set local request.jwt.claims = '{"sub": "c0000000-0000-0000-0000-00000000000c"}';
select count(public.register_device('test-many-' || n, 'web')) from generate_series(1, 120) n;
reset role;
select is(count(*), 100::bigint, 'a user has so many devices')
  from public.push_devices where user_id = 'c0000000-0000-0000-0000-00000000000c';
update public.push_devices set updated_at = now() - interval '1 h'
  where token = (select min(token) from public.push_devices where user_id = 'c0000000-0000-0000-0000-00000000000c');
set local role authenticated;
select public.register_device('test-many-121', 'web');
reset role;
select is(array[count(*) filter (where updated_at < now()), count(*)], '{0,100}'::bigint[], 'and loses the one not seen for longest')
  from public.push_devices where user_id = 'c0000000-0000-0000-0000-00000000000c';

-- A device that FCM has called dead is not forgotten at once, and not all of them are kept.
insert into public.push_devices (token, user_id, platform, disabled_at)
  select 'test-dead-' || n, 'c0000000-0000-0000-0000-00000000000c', 'web', now() - n * interval '1 s' from generate_series(1, 120) n;
set local role authenticated;
select public.register_device('test-many-122', 'web');
reset role;
select is(array[count(*), count(*) filter (where token = 'test-dead-100')], '{100,1}'::bigint[], 'the last 100 disabled ones are kept')
  from public.push_devices where user_id = 'c0000000-0000-0000-0000-00000000000c' and disabled_at is not null;

-- Since when a device is this user's.
update public.push_devices set created_at = now() - interval '1 day' where token = 'test-many-122';
set local role authenticated;
select public.register_device('test-many-122', 'ios');
reset role;
select is(created_at, now() - interval '1 day', 'another platform is the same device') from public.push_devices where token = 'test-many-122';
set local role authenticated;
set local request.jwt.claims = '{"sub": "b0000000-0000-0000-0000-00000000000b"}';
select public.register_device('test-many-122', 'web');
reset role;
select is(created_at, now(), 'another user is a new one') from public.push_devices where token = 'test-many-122';

-- What the application's own rules say of a row is not for who has caused it.
alter table public.push_devices add column nickname text, add constraint no_web_for_ann check (nickname is null or platform <> 'web') not valid;
update public.push_devices set nickname = 'the phone of a friend', platform = 'ios' where token = 'test-x';
set local role authenticated;
select throws_ok($$select public.register_device('test-x', 'web')$$, '23514',
  'a rule of the application''s for push_devices does not allow this device: no_web_for_ann', 'a rule is named');
select throws_ok($$select public.register_device(repeat('x', 2049), 'web')$$, '22023', null, 'a token is no longer than an index can hold');

select * from finish();
rollback;
