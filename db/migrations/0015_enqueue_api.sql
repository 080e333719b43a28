-- For the application's server.

\ir ../functions/public/enqueue_push.sql
\ir ../functions/public/cancel_push.sql
\ir ../functions/public/requeue_pushes.sql
