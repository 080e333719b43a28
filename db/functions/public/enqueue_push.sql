-- revision 2
-- Runs with the rights of the role that calls it, and so knows that role: a function of the application that runs
-- with its owner's rights calls as that owner, and may enqueue for a user.
create or replace function public.enqueue_push(
  p_user_id uuid default null,
  p_device_token text default null,
  p_topic text default null,
  p_condition text default null,
  p_title text default null,
  p_body text default null,
  p_data jsonb default null,
  p_channel text default null,
  p_priority text default null,
  p_image text default null,
  p_options jsonb default null,
  p_collapse_key text default null,
  p_idempotency_key text default null,
  p_expires_at timestamptz default null,
  p_send_at timestamptz default null,
  p_fid text default null
) returns uuid
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  c_number constant jsonpath := 'strict $.** ? (@.type() == "number" && (@.abs() >= 1e400 || @.abs() < 1e-400 && @ != 0))';
  v_problem text;
  v_limit integer := case when p_topic is null and p_condition is null then 4096 else 2048 end;
  v_size bigint;
  v_required text[];
  v_columns text;
  v_values text;
  v_id uuid;
  v_status text;
begin
  if public.push_is_service(current_user) is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server', current_user),
      hint = 'For a signed-in user, call it in a function of your own that checks the user and runs with its owner''s rights.';
  end if;
  -- What FCM or the listener would refuse is refused here, where the caller sees the error and can fix it.
  v_problem := case
    when pg_catalog.num_nonnulls(p_device_token, p_fid, p_topic, p_condition) > 1
      or (p_user_id is not null and pg_catalog.num_nonnulls(p_topic, p_condition) > 0)
      then 'set exactly one of p_device_token, p_fid, p_topic, p_condition and p_user_id (beside p_device_token or p_fid, p_user_id says whose device it is)'
    when pg_catalog.num_nonnulls(p_user_id, p_device_token, p_fid, p_topic, p_condition) = 0
      then 'the push has no target: set p_user_id, p_device_token, p_fid, p_topic or p_condition'
    when pg_catalog.length(p_device_token) not between 1 and 4096 or p_device_token collate "C" !~ '^[!-~]+$'
      then 'p_device_token must be a registration token, as the app got it'
    when pg_catalog.length(p_fid) not between 1 and 4096 or p_fid collate "C" !~ '^[!-~]+$'
      then 'p_fid must be a Firebase installation id, as the app got it'
    when pg_catalog.length(p_topic) > 1000 or p_topic !~ '^(/topics/)?[a-zA-Z0-9_.~%-]+$'
      then 'p_topic must be one or more of the characters a-z A-Z 0-9 - _ . ~ %'
    when pg_catalog.length(p_condition) > 4096 or p_condition collate "C" !~ '^[ -~]*[!-~][ -~]*$'
      then 'p_condition must be an expression such as ''news'' in topics && ''sport'' in topics'
    when (select count(*) from pg_catalog.regexp_matches(p_condition, '\yin\s+topics\y', 'gi')) > 5
      then 'p_condition names more than the 5 topics that FCM allows: send several pushes'
    when p_priority not in ('normal', 'high') then 'p_priority must be normal or high'
    when pg_catalog.jsonb_typeof(p_data) <> 'object' then 'p_data must be a JSON object'
    when pg_catalog.jsonb_typeof(p_options) <> 'object'
      or exists (select from pg_catalog.jsonb_each(p_options) o
                   where o.key not in ('android', 'apns', 'webpush', 'fcm_options')
                     or pg_catalog.jsonb_typeof(o.value) not in ('object', 'null'))
      then 'p_options may have only android, apns, webpush and fcm_options, each an object'
    -- Before these are written out: 1e131071 is 8 bytes to send and 131 KB as text.
    when pg_catalog.jsonb_path_exists(p_data, c_number) or pg_catalog.jsonb_path_exists(p_options, c_number)
      then 'p_data or p_options has a number of more than 400 digits'
    when pg_catalog.octet_length(p_options::text) > 32768 then 'p_options must be no larger than 32768 bytes'
    when coalesce(p_title, '') = '' and coalesce(p_body, '') = '' and coalesce(p_data, '{}') = '{}'
      and pg_catalog.num_nonnulls(
        nullif(nullif(p_options #> '{apns,payload}', 'null'), '{}'),
        nullif(nullif(p_options #> '{android,notification}', 'null'), '{}'),
        nullif(nullif(p_options #> '{webpush,notification}', 'null'), '{}'),
        nullif(nullif(p_options #> '{android,data}', 'null'), '{}'),
        nullif(nullif(p_options #> '{webpush,data}', 'null'), '{}')) = 0
      then 'p_title, p_body and p_data are all empty, and p_options shows nothing: nothing to send'
    when p_title is null and p_body <> '' and p_options is null -- the options may have a title; the listener looks
      then 'p_title is missing: set it, or for a data message leave p_body out too'
    when pg_catalog.length(p_channel) > 1000 then 'p_channel must be no longer than 1000 characters'
    when pg_catalog.length(p_image) > 2048 then 'p_image must be no longer than 2048 characters'
    when pg_catalog.length(p_collapse_key) > 1000 then 'p_collapse_key must be no longer than 1000 characters'
    when pg_catalog.length(p_idempotency_key) not between 1 and 255
      then 'p_idempotency_key must be from 1 to 255 characters'
    when not pg_catalog.isfinite(p_send_at) then 'p_send_at must be a finite time'
    when p_expires_at <= greatest(now(), p_send_at)
      then 'p_expires_at must be later than now and than p_send_at' end;
  if v_problem is null then
    -- A lower bound: how many bytes a value other than a string takes depends on how its JSON is written.
    v_size := coalesce(pg_catalog.octet_length(p_title), 0) + coalesce(pg_catalog.octet_length(p_body), 0)
      + coalesce((select sum(pg_catalog.octet_length(d.key) + case pg_catalog.jsonb_typeof(d.value)
                               when 'string' then pg_catalog.octet_length(d.value #>> '{}') else 1 end)
                    from pg_catalog.jsonb_each(p_data) d), 0);
    if v_size > v_limit then
      v_problem := pg_catalog.format('the payload is at least %s bytes, and FCM takes %s to %s: shorten p_title, p_body or p_data',
        v_size, v_limit, case v_limit when 4096 then 'a device' else 'a topic or condition' end);
    elsif pg_catalog.octet_length(p_data::text) > 32768 then
      v_problem := 'p_data must be no larger than 32768 bytes';
    elsif exists (select from pg_catalog.jsonb_object_keys(p_data) k
                    where k in ('from', 'message_type', 'gcm')
                      or pg_catalog.starts_with(k, 'google') or pg_catalog.starts_with(k, 'gcm.notification.')) then
      v_problem := 'FCM reserves the p_data keys from, message_type, gcm, google* and gcm.notification.*: rename them';
    end if;
  end if;
  if v_problem is not null then
    raise exception using errcode = 'invalid_parameter_value', message = v_problem;
  end if;

  -- A column that is not given gets its default. An adopted table may require a title or body: an empty one shows
  -- nothing.
  select pg_catalog.array_agg(a.attname) into v_required
    from pg_catalog.pg_attribute a
    where a.attrelid = 'public.push_notifications'::regclass and a.attname in ('title', 'body') and a.attnotnull;
  select pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' order by c.place),
         pg_catalog.string_agg('$' || c.place, ', ' order by c.place)
    into v_columns, v_values
    from (values
      (1, 'user_id', p_user_id is not null),
      (2, 'device_token', p_device_token is not null),
      (3, 'topic', p_topic is not null),
      (4, 'condition', p_condition is not null),
      (5, 'title', p_title is not null or 'title' = any (v_required)),
      (6, 'body', p_body is not null or 'body' = any (v_required)),
      (7, 'data', p_data is not null),
      (8, 'channel', p_channel is not null),
      (9, 'priority', p_priority is not null),
      (10, 'image', p_image is not null),
      (11, 'options', p_options is not null),
      (12, 'collapse_key', p_collapse_key is not null),
      (13, 'idempotency_key', p_idempotency_key is not null),
      (14, 'expires_at', p_expires_at is not null),
      (15, 'next_attempt_at', true),
      (16, 'status', true),
      (17, 'fid', p_fid is not null)
    ) as c(place, name, given)
    where c.given;

  loop
    execute pg_catalog.format(
      'insert into public.push_notifications (%s) values (%s) '
      'on conflict (idempotency_key) where idempotency_key is not null do nothing returning id, status', v_columns, v_values)
      into v_id, v_status
      using p_user_id, p_device_token, p_topic, p_condition, coalesce(p_title, ''), coalesce(p_body, ''), p_data,
            p_channel, p_priority, p_image, p_options, p_collapse_key, p_idempotency_key, p_expires_at,
            greatest(p_send_at, now()), 'pending', p_fid;
    exit when v_id is not null;
    if p_idempotency_key is null then
      raise exception using errcode = 'object_not_in_prerequisite_state',
        message = 'a trigger on push_notifications has ignored the new row',
        hint = 'Let the trigger pass what this function inserts.';
    end if;
    select p.id into v_id from public.push_notifications p where p.idempotency_key = p_idempotency_key;
    exit when v_id is not null; -- otherwise the row has just been deleted: insert again
  end loop;
  if v_status <> 'pending' then
    raise exception using errcode = 'object_not_in_prerequisite_state',
      message = pg_catalog.format('a trigger on push_notifications has given the new row the status %L: it would never be sent', v_status),
      hint = 'Let the trigger leave the status of new rows alone.';
  end if;
  return v_id;
end
$$;
revoke all on function public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                        timestamptz, timestamptz, text) from public;
comment on function public.enqueue_push(uuid, text, text, text, text, text, jsonb, text, text, text, jsonb, text, text,
                                        timestamptz, timestamptz, text) is
  'Puts a push in the queue and returns its id. If a push with this p_idempotency_key exists, returns the id of that one.';
