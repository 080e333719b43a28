-- For devices, as their signed-in user: receipts, telemetry, and registration.

\ir ../functions/push_listener/json_problem.sql

-- Receipts
\ir ../functions/push_listener/receipt_problem.sql
\ir ../functions/push_listener/receipt_facts.sql
\ir ../functions/public/record_delivery_receipt.sql

-- Telemetry
\ir ../functions/push_listener/to_time.sql
\ir ../functions/push_listener/telemetry_problem.sql
\ir ../functions/push_listener/store_telemetry.sql
\ir ../functions/push_listener/forget_telemetry_use.sql
\ir ../functions/push_listener/telemetry_wait.sql
\ir ../functions/public/flush_telemetry.sql

-- Registration
\ir ../functions/public/register_device.sql
\ir ../functions/public/unregister_device.sql
