-- For workers of other projects, through PostgREST or in SQL: claim pushes, and report what became of them. They
-- share the queue with listeners: the same order, the same leases.
--
-- Every function in public finds out by itself who calls it, whatever has been granted. The step "privileges" grants
-- execute; until then, only the owner may call the functions (an older Supabase project grants execute on new
-- functions to its roles). The functions look names up in pg_catalog first, because an empty search_path looks for
-- types in pg_temp, where the caller may create them. Refusals carry the SQLSTATE from which PostgREST makes the HTTP
-- status: 22023 -> 400, 42501 -> 403, PTxyz -> xyz. No message of a refusal contains a token or a payload.

-- Who calls
\ir ../functions/public/push_is_service.sql
\ir ../functions/push_listener/caller.sql
\ir ../functions/push_listener/caller_is_service.sql
\ir ../functions/push_listener/refuse_users.sql
\ir ../functions/push_listener/trusts.sql
\ir ../functions/push_listener/caller_id.sql

-- What workers call
\ir ../functions/push_listener/settled_before.sql
\ir ../functions/public/fetch_pending_pushes.sql
\ir ../functions/public/mark_push_sent.sql
\ir ../functions/public/mark_push_failed.sql
