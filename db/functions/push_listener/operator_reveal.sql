-- revision 3
-- The record is written in the transaction of the caller, who can roll it back after reading.
--
-- A text may have any length, and who shows it must not stop over it. The largest message that FCM takes has 4,096 bytes.
create or replace function push_listener.operator_reveal(p_push_id uuid, p_who text)
  returns table (device_token text, title text, body text, data jsonb, image text, options jsonb, tokens text[])
  language plpgsql security definer rows 1 set search_path = pg_catalog, pg_temp
as $$
declare
  v_most constant integer := 16384;
  v_most_of_token constant integer := 1024;
  v_cut constant text := ' ... (cut)';
begin
  perform push_listener.check_action(p_who, null, null, array[p_push_id]);
  return query
    select left(p.target, v_most) || case when length(left(p.target, v_most + 1)) > v_most then v_cut else '' end,
           left(p.title, v_most) || case when length(left(p.title, v_most + 1)) > v_most then v_cut else '' end,
           left(p.body, v_most) || case when length(left(p.body, v_most + 1)) > v_most then v_cut else '' end,
           case when length(p.data) > v_most then to_jsonb(left(p.data, v_most) || v_cut) else p.data::jsonb end,
           left(p.image, v_most) || case when length(left(p.image, v_most + 1)) > v_most then v_cut else '' end,
           case when length(p.options) > v_most then to_jsonb(left(p.options, v_most) || v_cut) else p.options::jsonb end,
           array(select distinct left(l.device_token::text, v_most_of_token)
                          || case when length(left(l.device_token::text, v_most_of_token + 1)) > v_most_of_token
                                  then v_cut else '' end
                   from public.push_delivery_logs l
                   where l.push_id = p_push_id and l.device_token is not null
                   order by 1
                   limit 1000)
      from (
        select coalesce(n.device_token, n.fid)::text as target, n.title::text as title, n.body::text as body,
               n.data::jsonb::text as data, n.image::text as image, n.options::jsonb::text as options
          from public.push_notifications n
          where n.id = p_push_id
          offset 0
      ) p;
  if found then
    insert into push_listener.actions (who, what, affected, ids) values (p_who, 'reveal', 1, array[p_push_id]);
  end if;
end
$$;
revoke all on function push_listener.operator_reveal from public;
comment on function push_listener.operator_reveal is
  'What a push says, its registration token or installation id (fid), and the tokens in its log (no more than 1000); records that they were looked at, unless the caller rolls back. Texts longer than 16384 characters, and tokens of the log longer than 1024, are cut. No row if there is no such push.';
