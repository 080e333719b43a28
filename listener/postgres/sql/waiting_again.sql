-- The rows among these that wait in the queue again although this transaction has just settled them as sent, dead or
-- expired, and so has locked them: a trigger of the application has changed the result.
select p.id
  from public.push_notifications p
  where p.id = any(%(ids)s::uuid[]) and p.status::text in ('pending', 'processing', 'failed')
