-- The holders of snapshots that keep vacuum from removing dead rows of this database, the oldest first.
select kind, name, pid, role, state, age, seconds
  from ({holders}) held
  order by age desc
  limit 10
