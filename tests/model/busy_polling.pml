/* The doorbell (listener/wakeup/busy_polling.py): when every listener sleeps, no committed row is left in the queue.
 *
 * There are inserters; two listeners, the second of which starts at any moment, such as after the death of the first; and
 * faults: at any moment the first listener is killed, frozen for ever, or loses the backend that listens. When nothing can
 * happen any more, every visible row must have been claimed.
 *
 * A step that only its own process sees is atomic with the one before it, which spares a third of the states.
 *
 * Where the program asks repeatedly, the model waits for the answer that matters. A look at the queue claims every visible
 * row. It is made as soon as it is due, because a later look would find more. Rows in the hands of a dead listener are
 * rescued by other means (listener/wakeup/peers.py), and count as claimed.
 *
 * With STRANGERS, a session that is no listener takes the lock and notifies nobody. It releases the lock, or never does,
 * when every living listener has seen it. (If it releases the lock earlier, a sweep finds the rows, because a sweep looks
 * at the queue as well.)
 *
 * Each name that the preprocessor tests below removes, if it is defined, one step of the protocol or one promise of
 * Postgres.
 */

#ifndef INSERTERS
#define INSERTERS 2
#endif
#ifndef TAKES
#define TAKES 2
#endif
#ifndef FAULTS
#define FAULTS 1
#endif

#define FREE 0
#define STRANGER 3

/* Postgres */
byte lock = FREE;  /* the polling lock: a listener's number + 1 */
bool writes[INSERTERS];  /* RowExclusiveLock on push_notifications */
bool visible[INSERTERS];
bool claimed[INSERTERS];
bool listens[2];
bool notified[2];  /* on its way: a notification that the other one polls */
bit session[2];

/* Listeners */
bool gone[2];  /* killed or frozen */
bool killed;  /* the first */
bool buried;  /* the second has noticed the death of the first */
bool asks[2];  /* its backend runs a statement, and finishes it even if the client is gone */
bool recheck[2];  /* it must recheck before it sleeps */
bool again[2];  /* requested again since the recheck began */

bool seen[2];  /* a sweep has seen that the stranger has the lock */

byte takes = TAKES;
byte faults = FAULTS;

#define LEFT(i) (visible[i] && !claimed[i])
#if INSERTERS == 1
#define ANY_LEFT LEFT(0)
#define WRITING writes[0]
#elif INSERTERS == 2
#define ANY_LEFT (LEFT(0) || LEFT(1))
#define WRITING (writes[0] + 2 * writes[1])
#else
#define ANY_LEFT (LEFT(0) || LEFT(1) || LEFT(2))
#define WRITING (writes[0] + 2 * writes[1] + 4 * writes[2])
#endif

inline claim() {
  claimed[0] = visible[0];
#if INSERTERS > 1
  claimed[1] = visible[1];
#endif
#if INSERTERS > 2
  claimed[2] = visible[2]
#endif
}

inline look() {  /* a listener without LISTEN may not claim; when LISTEN succeeds, a look follows */
  if :: listens[l] -> claim() :: else fi
}

inline notify() {
  if :: (listens[0] && !gone[0]) || (listens[1] && !gone[1]) -> claim() :: else fi
}

inline ring() {
  atomic { if :: notifies -> notify() :: else fi; back = false; notifies = false }
}

inline notify_peer() {
  if :: listens[1 - l] && !gone[1 - l] -> notified[1 - l] = true :: else fi
}

inline ask_who_writes() {  /* Postgres reads the locks of one backend after the other */
  open = writes[0];
#if INSERTERS > 1
  open = open + 2 * writes[1];
#endif
#if INSERTERS > 2
  open = open + 4 * writes[2]
#endif
}

proctype Inserter(byte i) {
  bool notifies;
  bool back = (i == 0);  /* the first inserter may roll back to a savepoint once */

insert:
#ifdef TRIES_BEFORE_IT_WRITES
  notifies = (lock == FREE);
  writes[i] = true;
#else
  writes[i] = true;
  notifies = (lock == FREE);
#endif
  if
#ifdef ROLLBACKS
  :: atomic { back -> back = false; writes[i] = false; notifies = false; goto insert }  /* to a savepoint */
  :: atomic { back = false; writes[i] = false; notifies = false }  /* to its beginning */
#endif
#ifdef UNLOCKS_BEFORE_IT_IS_VISIBLE
  :: writes[i] = false; visible[i] = true; ring()
#else
  :: visible[i] = true; writes[i] = false; ring()
#endif
  fi
}

proctype Doorbell(byte l) provided (!gone[l]) {
end:
  do
  :: atomic { !listens[l] -> listens[l] = true; look();
#ifndef NO_RECHECK_ON_LISTEN
       recheck[l] = true; again[l] = true
#endif
     }
#ifndef NO_RECHECK_AT_A_DEATH
  :: atomic { l == 1 && listens[1] && gone[0] && !listens[0] && !buried ->
       buried = true; look(); recheck[l] = true; again[l] = true }
#endif
  :: atomic { notified[l] -> notified[l] = false; look(); recheck[l] = true; again[l] = true }
#if defined(STRANGERS) && !defined(NO_RECHECK_AT_A_STRANGER)
  :: atomic { lock == STRANGER && listens[l] && !seen[l] -> seen[l] = true; recheck[l] = true; again[l] = true }
#endif
  od
}

proctype BusyPolling(byte l) provided (!gone[l]) {
  byte open;
  bit mine;

end:
  do
#ifdef NOTIFIES_PEER_BEFORE
  :: atomic { takes > 0 && listens[l] && lock == FREE -> takes--; notify_peer() };
     atomic { lock == FREE && listens[l] -> lock = l + 1; mine = session[l] };
#else
  :: atomic { takes > 0 && listens[l] && lock == FREE -> takes--; lock = l + 1; mine = session[l]; asks[l] = true };
#endif
#ifdef NOTIFIES_PEER_LATER
     asks[l] = false;
#endif
     /* The transaction that took the lock also notifies the peer, unless the backend is terminated in between. */
     atomic {
       if
       :: mine == session[l] && listens[l] ->
#if !defined(NOTIFIES_NO_PEER) && !defined(NOTIFIES_PEER_BEFORE)
          notify_peer();
#endif
          recheck[l] = true; again[l] = true
       :: else  /* LISTEN follows */
       fi;
       asks[l] = false
     };
#ifdef LOOKS_BEFORE_RELEASE
     atomic { look(); recheck[l] = false; again[l] = false };
#endif
     atomic { if :: lock == l + 1 && mine == session[l] -> lock = FREE :: else fi; mine = 0 }

#ifdef NOTES_RECHECKS_LATE
  :: recheck[l] ->
recheck_from_start:
#else
  :: atomic { recheck[l] ->
recheck_from_start:
       again[l] = false };
#endif
#ifdef ONE_STATEMENT
     ask_who_writes();
#endif
     if
     :: atomic { lock != FREE -> open = 0 };
#ifdef NO_WATCH
        lock == FREE;
#else
        atomic { if :: lock == FREE :: ANY_LEFT && listens[l] fi; look() };
#endif
        goto recheck_from_start
     :: else
     fi;
#ifdef LOOKS_BEFORE_ASKING
     atomic { look() };
#endif
#ifndef ONE_STATEMENT
     ask_who_writes();
#endif
#ifdef NOTES_RECHECKS_LATE
     again[l] = false;
#endif
#ifdef NO_WAIT
     open = 0;
#endif
#ifndef LOOKS_BEFORE_ASKING
     atomic { look() };
#endif
     do
     :: atomic { open == 0 ->
#ifdef FORGETS_RECHECKS
          again[l] = false;
#endif
          recheck[l] = again[l]; again[l] = false; break }
     :: atomic { open != 0 && (again[l] || takes > 0) -> open = 0; break }  /* begins the recheck again, or wants to poll */
     :: atomic { open != 0 && (open & WRITING) != open -> open = open & WRITING;
#ifndef NO_LOOK_WHEN_ONE_ENDS
          look()
#endif
        }
     od
  od
}

#ifdef STRANGERS
proctype Stranger() {
end:
  atomic { lock == FREE -> lock = STRANGER };
end_holds:
  if
  :: atomic { (seen[0] || gone[0]) && (seen[1] || gone[1]) -> lock = FREE }
  :: true  /* for ever */
  fi
}
#endif

proctype Fault() {
end:
  do
  :: atomic { faults > 0 && !gone[0] && !asks[0] ->
       faults--; gone[0] = true; notified[0] = false; recheck[0] = false; again[0] = false;
       if
       :: killed = true
#ifndef NOT_FROZEN
       :: true  /* frozen */
#endif
       fi }
  :: atomic { listens[0] && (killed || faults > 0) ->  /* its backend notices the death, or is terminated */
       if :: killed :: else -> faults-- fi;
       session[0] = 1 - session[0]; listens[0] = false; notified[0] = false;
       if :: lock == 1 -> lock = FREE :: else fi }
  od
}

proctype Quiet() {
  timeout;
#ifdef CANARY
  assert(false)
#else
  assert(!ANY_LEFT)
#endif
}

init {
  atomic {
    listens[0] = true;
    run Inserter(0);
#if INSERTERS > 1
    run Inserter(1);
#endif
#if INSERTERS > 2
    run Inserter(2);
#endif
    run Doorbell(0); run BusyPolling(0);
    run Doorbell(1); run BusyPolling(1);
    run Fault();
#ifdef STRANGERS
    run Stranger();
#endif
    run Quiet()
  }
}
