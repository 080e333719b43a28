-- Gives up pushes that are due and cannot be claimed, because they have a text that is not valid UTF-8.
update public.push_notifications
  set status = 'dead', next_attempt_at = null, push_first_due_at = null, error_code = %(code)s, last_error = %(reason)s,
      updated_at = pg_catalog.now()
  where id = any(%(ids)s::uuid[]) and next_attempt_at <= pg_catalog.now()
    and status::text in ('pending', 'processing', 'failed')
