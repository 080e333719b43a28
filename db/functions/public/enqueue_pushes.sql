-- revision 1
-- Runs with the rights of the role that calls it: see enqueue_push. The rules for an element are those of enqueue_push,
-- in the same order; a test compares the two.
--
-- All elements are checked in one statement and inserted in another. If the table refuses a row, its half of the batch is
-- inserted again in halves, until the row is alone and the others are in. When it has refused a hundred rows in a row, it
-- probably refuses all, and further parts that it refuses are not halved: to try each row takes minutes.
create or replace function public.enqueue_pushes(p_pushes jsonb[])
  returns table (place integer, id uuid, is_new boolean, error text)
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_texts constant text[] := '{user_id,device_token,fid,topic,condition,title,body,channel,priority,image,collapse_key,idempotency_key,send_at,expires_at}';
  c_objects constant text[] := '{data,options}';
  -- A time that Postgres can read: only the last day of the month is left to check.
  c_time constant text := '^(?!0000)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?$';
  -- A number whose text is much longer than its input.
  c_number constant jsonpath := 'strict $.** ? (@.type() == "number" && (@.abs() >= 1e400 || @.abs() < 1e-400 && @ != 0))';
  c_rounds constant integer := 10;
  c_refused constant integer := 100;
  v_size constant integer := pg_catalog.cardinality(p_pushes);
  v_insert text;
  -- Of each element, by its place from 1.
  v_keys text[];
  v_send_at timestamptz[];
  v_expires_at timestamptz[];
  v_errors text[];
  v_ids uuid[];
  v_new boolean[];
  -- The elements to be inserted, in order, and the parts of that list that are still to be tried.
  v_list_places integer[];
  v_list_pushes jsonb[];
  v_list_send_at timestamptz[];
  v_list_expires_at timestamptz[];
  v_parts integer[];
  v_from integer;
  v_to integer;
  v_refused integer := 0;
  v_made_places integer[];
  v_made_ids uuid[];
  v_status text;
  v_column text;
  found record;
begin
  if public.push_is_service(current_user) is not true then
    raise exception using errcode = 'insufficient_privilege',
      message = pg_catalog.format('%s may not call this function: it is for the application''s server', current_user),
      hint = 'For a signed-in user, call it in a function of your own that checks the user and runs with its owner''s rights.';
  end if;
  if p_pushes is null or pg_catalog.array_ndims(p_pushes) > 1 then
    raise exception using errcode = 'invalid_parameter_value', message = 'p_pushes must be an array of JSON objects';
  end if;
  if v_size > 10000 then
    raise exception using errcode = 'invalid_parameter_value',
      message = pg_catalog.format('p_pushes has %s elements, and at most 10000 are taken at once', v_size);
  end if;

  -- Materialized, because a problem in here keeps the text of an element from being written out below.
  with formed as materialized (
    select e.place, e.push, case
             when e.push is null or pg_catalog.jsonb_typeof(e.push) <> 'object' then 'this is not a JSON object'
             when pg_catalog.pg_column_size(e.push) > 400000 then 'this is far too large: more than 400000 bytes as jsonb'
             when e.push - c_texts - c_objects <> '{}' then coalesce(
               -- A key that is no plain word may be anything, a token too, and is not repeated.
               (select pg_catalog.format('there is no key %s: the keys are those of enqueue_push without p_', min(k.key))
                  from pg_catalog.jsonb_object_keys(e.push - c_texts - c_objects) as k(key)
                  where k.key ~ '^[a-z_]{1,30}$'
                  having count(*) > 0),
               'there is a key that no push has: the keys are those of enqueue_push without p_')
             when pg_catalog.jsonb_path_exists(e.push - c_objects, 'strict $.* ? (@.type() != "string" && @.type() != "null")')
               then (
               select pg_catalog.format('%s must be a string', min(k.key))
                 from pg_catalog.jsonb_each(e.push - c_objects) as k(key, value)
                 where pg_catalog.jsonb_typeof(k.value) not in ('string', 'null'))
             when pg_catalog.jsonb_path_exists(e.push, c_number) then 'data or options has a number of more than 400 digits'
           end as problem
      from pg_catalog.unnest(p_pushes) with ordinality as e(push, place)
  ), element as (
    select e.place, e.problem, f.*
      from formed e
      left join lateral pg_catalog.jsonb_to_record(case when e.problem is null then e.push end)
        as f(user_id text, device_token text, fid text, topic text, condition text, title text, body text, data jsonb,
             channel text, priority text, image text, options jsonb, collapse_key text, idempotency_key text,
             send_at text, expires_at text) on true
  ), timed as (
    select s.*, t.not_time, t.send_time, t.expires_time
      from element s
      left join lateral (
        select min(o.name) filter (where not o.is_time) as not_time,
               min(o.at) filter (where o.name = 'send_at') as send_time,
               min(o.at) filter (where o.name = 'expires_at') as expires_time
          from (
            select c.name, c.text, c.is_time,
                   case when c.is_time
                        then (c.text || case when c.text ~ '(Z|[+-][0-9:]{2,5})$' then '' else 'Z' end)::timestamptz end as at
              from (
                select g.name, g.text,
                       case when g.text ~ c_time
                            then pg_catalog."substring"(g.text, 9, 2)::integer <= extract(day from
                                   pg_catalog.make_date("left"(g.text, 4)::integer, pg_catalog."substring"(g.text, 6, 2)::integer, 1)
                                   + interval '1 month' - interval '1 day')
                            else false end as is_time
                  from (values ('send_at', s.send_at), ('expires_at', s.expires_at)) as g(name, text)
                  where g.text is not null
              ) c
          ) o
      ) t on s.send_at is not null or s.expires_at is not null
  ), judged as materialized (
    select t.place, t.idempotency_key, t.send_time, t.expires_time, case
      when t.problem is not null then t.problem
      when t.not_time is not null then pg_catalog.format('%s must be a time in ISO 8601', t.not_time)
      when t.user_id !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then 'user_id must be a UUID'
      when pg_catalog.num_nonnulls(t.device_token, t.fid, t.topic, t.condition) > 1
        or (t.user_id is not null and pg_catalog.num_nonnulls(t.topic, t.condition) > 0)
        then 'set exactly one of device_token, fid, topic, condition and user_id (beside device_token or fid, user_id says whose device it is)'
      when pg_catalog.num_nonnulls(t.user_id, t.device_token, t.fid, t.topic, t.condition) = 0
        then 'the push has no target: set user_id, device_token, fid, topic or condition'
      when pg_catalog.length(t.device_token) not between 1 and 4096 or t.device_token collate "C" !~ '^[!-~]+$'
        then 'device_token must be a registration token, as the app got it'
      when pg_catalog.length(t.fid) not between 1 and 4096 or t.fid collate "C" !~ '^[!-~]+$'
        then 'fid must be a Firebase installation id, as the app got it'
      when pg_catalog.length(t.topic) > 1000 or t.topic !~ '^(/topics/)?[a-zA-Z0-9_.~%-]+$'
        then 'topic must be one or more of the characters a-z A-Z 0-9 - _ . ~ %'
      when pg_catalog.length(t.condition) > 4096 or t.condition collate "C" !~ '^[ -~]*[!-~][ -~]*$'
        then 'condition must be an expression such as ''news'' in topics && ''sport'' in topics'
      when t.condition is not null
        and (select count(*) from pg_catalog.regexp_matches(t.condition, '\yin\s+topics\y', 'gi')) > 5
        then 'condition names more than the 5 topics that FCM allows: send several pushes'
      when t.priority not in ('normal', 'high') then 'priority must be normal or high'
      when pg_catalog.jsonb_typeof(t.data) <> 'object' then 'data must be a JSON object'
      when pg_catalog.jsonb_typeof(t.options) <> 'object' then 'options may have only android, apns, webpush and fcm_options, each an object'
      when t.options is not null and exists (
                   select from pg_catalog.jsonb_each(t.options) o
                     where o.key not in ('android', 'apns', 'webpush', 'fcm_options')
                       or pg_catalog.jsonb_typeof(o.value) not in ('object', 'null'))
        then 'options may have only android, apns, webpush and fcm_options, each an object'
      when pg_catalog.octet_length(t.options::text) > 32768 then 'options must be no larger than 32768 bytes'
      when coalesce(t.title, '') = '' and coalesce(t.body, '') = '' and coalesce(t.data, '{}') = '{}'
        and pg_catalog.num_nonnulls(
          nullif(nullif(t.options #> '{apns,payload}', 'null'), '{}'),
          nullif(nullif(t.options #> '{android,notification}', 'null'), '{}'),
          nullif(nullif(t.options #> '{webpush,notification}', 'null'), '{}'),
          nullif(nullif(t.options #> '{android,data}', 'null'), '{}'),
          nullif(nullif(t.options #> '{webpush,data}', 'null'), '{}')) = 0
        then 'title, body and data are all empty, and options shows nothing: nothing to send'
      when t.title is null and t.body <> '' and t.options is null -- the options may have a title; the listener looks
        then 'title is missing: set it, or for a data message leave body out too'
      when pg_catalog.length(t.channel) > 1000 then 'channel must be no longer than 1000 characters'
      when pg_catalog.length(t.image) > 2048 then 'image must be no longer than 2048 characters'
      when pg_catalog.length(t.collapse_key) > 1000 then 'collapse_key must be no longer than 1000 characters'
      when pg_catalog.length(t.idempotency_key) not between 1 and 255 then 'idempotency_key must be from 1 to 255 characters'
      when t.expires_time <= greatest(now(), t.send_time) then 'expires_at must be later than now and than send_at'
      -- A lower bound: how many bytes a value other than a string takes depends on how its JSON is written.
      when b.bytes > b.most
        then pg_catalog.format('the payload is at least %s bytes, and FCM takes %s to %s: shorten title, body or data',
          b.bytes, b.most, case b.most when 4096 then 'a device' else 'a topic or condition' end)
      when pg_catalog.octet_length(t.data::text) > 32768 then 'data must be no larger than 32768 bytes'
      when t.data is not null and exists (
        select from pg_catalog.jsonb_object_keys(t.data) k
          where k in ('from', 'message_type', 'gcm')
            or pg_catalog.starts_with(k, 'google') or pg_catalog.starts_with(k, 'gcm.notification.'))
        then 'FCM reserves the data keys from, message_type, gcm, google* and gcm.notification.*: rename them'
      end as problem
      from timed t
      cross join lateral (
        select case when t.topic is null and t.condition is null then 4096 else 2048 end as most,
               coalesce(pg_catalog.octet_length(t.title), 0) + coalesce(pg_catalog.octet_length(t.body), 0)
                 + coalesce((select sum(pg_catalog.octet_length(d.key) + case pg_catalog.jsonb_typeof(d.value)
                                          when 'string' then pg_catalog.octet_length(d.value #>> '{}') else 1 end)
                               from pg_catalog.jsonb_each(
                                 case when pg_catalog.jsonb_typeof(t.data) = 'object' then t.data end) d), 0) as bytes
      ) b
  )
  select pg_catalog.array_agg(j.problem order by j.place),
         pg_catalog.array_agg(case when j.problem is null then j.idempotency_key end order by j.place),
         pg_catalog.array_agg(case when j.problem is null then j.send_time end order by j.place),
         pg_catalog.array_agg(case when j.problem is null then j.expires_time end order by j.place)
    into v_errors, v_keys, v_send_at, v_expires_at
    from judged j;
  v_ids := pg_catalog.array_fill(null::uuid, array[v_size]);
  v_new := pg_catalog.array_fill(false, array[v_size]);

  -- A column that is not given gets its default, and the id is known before the insert, which tells the rows apart. An
  -- adopted table may require a title or body: an empty one shows nothing.
  select pg_catalog.format(
      'with wanted as materialized ('
      '  select g.place, %1$s as id, g.send_at, g.expires_at as expires, f.*'
      '    from unnest($1, $2, $3, $4) as g(push, place, send_at, expires_at)'
      '    cross join lateral pg_catalog.jsonb_to_record(g.push - ''{send_at,expires_at}''::text[]) as f(%2$s)'
      '), made as ('
      '  insert into public.push_notifications (id, next_attempt_at, status, expires_at, %3$s)'
      '    select w.id, greatest(w.send_at, now()), ''pending'', %4$s, %5$s from wanted w'
      '    on conflict (idempotency_key) where idempotency_key is not null do nothing'
      '    returning id, status'
      ') '
      'select pg_catalog.array_agg(w.place), pg_catalog.array_agg(m.id), min(m.status) filter (where m.status <> ''pending'')'
      '  from made m left join wanted w using (id)',
      max(c.fallback) filter (where c.name = 'id'),
      pg_catalog.string_agg(pg_catalog.format('%I %s', c.name, c.type), ', ') filter (where c.is_given),
      pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' order by c.name) filter (where c.is_given),
      max(case when c.fallback is null then 'w.expires' else pg_catalog.format('coalesce(w.expires, %s)', c.fallback) end)
        filter (where c.name = 'expires_at'),
      pg_catalog.string_agg(
        case when c.fallback is null then pg_catalog.format('w.%I', c.name)
             else pg_catalog.format('coalesce(w.%I, %s)', c.name, c.fallback) end, ', ' order by c.name) filter (where c.is_given))
    into v_insert
    from (
      select a.attname as name, pg_catalog.format_type(a.atttypid, null) as type,
             a.attname = any (c_texts || c_objects) and a.attname not in ('send_at', 'expires_at') as is_given,
             coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid),
                      case when a.attname in ('title', 'body') and a.attnotnull then '''''' end) as fallback
        from pg_catalog.pg_attribute a
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = 'public.push_notifications'::regclass and a.attnum > 0 and not a.attisdropped
    ) c;

  for v_round in 1 .. c_rounds loop
    -- Those with a key in the order of their keys, so that two calls with the same keys do not wait for each other in a
    -- circle; of each key the first.
    select pg_catalog.array_agg(w.place order by w.key nulls first, w.place),
           pg_catalog.array_agg(w.push order by w.key nulls first, w.place),
           pg_catalog.array_agg(w.send_at order by w.key nulls first, w.place),
           pg_catalog.array_agg(w.expires_at order by w.key nulls first, w.place)
      into v_list_places, v_list_pushes, v_list_send_at, v_list_expires_at
      from (
        select e.*, pg_catalog.row_number() over (partition by e.key order by e.place) as nth
          from unnest(p_pushes, v_keys, v_send_at, v_expires_at, v_errors, v_ids) with ordinality
            as e(push, key, send_at, expires_at, problem, id, place)
          where e.problem is null and e.id is null
      ) w
      where w.key is null or w.nth = 1;
    exit when v_list_places is null;
    v_parts := array[1, pg_catalog.cardinality(v_list_places)];
    while v_parts <> '{}' loop
      v_to := v_parts[pg_catalog.cardinality(v_parts)];
      v_from := v_parts[pg_catalog.cardinality(v_parts) - 1];
      v_parts := v_parts[:pg_catalog.cardinality(v_parts) - 2];
      begin
        execute v_insert
          into v_made_places, v_made_ids, v_status
          using v_list_pushes[v_from:v_to], v_list_places[v_from:v_to], v_list_send_at[v_from:v_to],
                v_list_expires_at[v_from:v_to];
        if v_status is not null then
          raise exception using errcode = 'PL001', message = pg_catalog.format(
            'a trigger on push_notifications has given the new row the status %L: it would never be sent', v_status);
        end if;
        v_refused := 0;
      exception when data_exception or integrity_constraint_violation or raise_exception or program_limit_exceeded or sqlstate 'PL001' then
        v_made_places := '{}';
        if v_from = v_to then
          v_refused := v_refused + 1;
          v_errors[v_list_places[v_from]] := sqlerrm;
        elsif v_refused >= c_refused then
          for i in v_from .. v_to loop
            v_errors[v_list_places[i]] := pg_catalog.format(
              'refused together with %s others, after %s had been refused one by one: %s', v_to - v_from, v_refused, sqlerrm);
          end loop;
        else
          v_parts := v_parts || array[(v_from + v_to) / 2 + 1, v_to, v_from, (v_from + v_to) / 2];
        end if;
      end;
      if pg_catalog.array_position(v_made_places, null) is not null then
        raise exception using errcode = 'object_not_in_prerequisite_state',
          message = 'a trigger on push_notifications changes the id of new rows',
          hint = 'Let the trigger leave the id of new rows alone.';
      end if;
      for i in 1 .. coalesce(pg_catalog.cardinality(v_made_places), 0) loop
        v_ids[v_made_places[i]] := v_made_ids[i];
        v_new[v_made_places[i]] := true;
      end loop;
    end loop;

    -- The others have a key that an earlier push has. A new statement sees what has been committed meanwhile.
    for found in
      select e.place, p.id
        from unnest(v_keys, v_errors, v_ids) with ordinality as e(key, problem, id, place)
        join public.push_notifications p on p.idempotency_key = e.key
        where e.problem is null and e.id is null and e.key is not null
    loop
      v_ids[found.place] := found.id;
    end loop;
    -- A row without a key that is not there has been ignored.
    for found in
      select e.place
        from unnest(v_keys, v_errors, v_ids) with ordinality as e(key, problem, id, place)
        where e.problem is null and e.id is null and (e.key is null or v_round = c_rounds)
    loop
      v_errors[found.place] := case when v_keys[found.place] is null
        then 'a trigger on push_notifications has ignored the new row'
        else 'the push with this idempotency_key is deleted, or ignored by a trigger, as soon as it is inserted' end;
    end loop;
  end loop;

  return query
    select (e.place - 1)::integer, e.id, e.is_new, e.problem
      from unnest(v_ids, v_new, v_errors) with ordinality as e(id, is_new, problem, place)
      order by e.place;
end
$$;
revoke all on function public.enqueue_pushes(jsonb[]) from public;
comment on function public.enqueue_pushes(jsonb[]) is
  'Puts up to 10000 pushes in the queue, each an object with the keys of enqueue_push without p_. Returns one row for each, in their order: place counts from 0; id of the push, and whether this call made it (is_new); or error: why this one was refused. The others are in the queue.';
