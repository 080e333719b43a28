/* The doorbell (listener/wakeup/busy_polling.py): listeners that all sleep have left no committed row in the queue.
 *
 * Inserters; two listeners, the second of which starts at any moment, such as after the death of the first; and faults:
 * at any moment the first is killed, is frozen for ever, or loses the backend that listens. When nothing can happen any
 * more, every row that can be seen must have been claimed.
 *
 * What is asked again and again waits here for the answer that matters. A look at the queue claims all that can be seen,
 * and is made as soon as it is due: a later one would find more. Rows in the hands of a dead listener are another matter
 * (listener/wakeup/peers.py) and count as claimed.
 *
 * With STRANGERS, a session that is no listener takes the lock and tells nobody, and lets it go, or not, when every
 * listener that lives has seen it. (If it lets go before, a sweep finds the rows: it looks at the queue as well.)
 *
 * Each name that is tested for below takes, if it is defined, one step out of the protocol or one promise from Postgres.
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
byte lock = FREE;  /* AWAKE: a listener's number + 1 */
bool writes[INSERTERS];  /* RowExclusiveLock on push_notifications */
bool visible[INSERTERS];
bool claimed[INSERTERS];
bool listens[2];
bool told[2];  /* on its way: the other is awake */
bit session[2];

/* Listeners */
bool gone[2];  /* killed or frozen */
bool killed;  /* the first */
bool buried;  /* by the second */
bool asks[2];  /* its backend is at work, and ends that even if the client is gone */
bool doubt[2];
bool anew[2];  /* in doubt again since it began to settle that */

bool seen[2];  /* by a sweep: the stranger has the lock */

byte takes = TAKES;
byte faults = FAULTS;

#define LEFT(i) (visible[i] && !claimed[i])
#if INSERTERS == 2
#define ANY_LEFT (LEFT(0) || LEFT(1))
#define WRITING (writes[0] + 2 * writes[1])
#else
#define ANY_LEFT (LEFT(0) || LEFT(1) || LEFT(2))
#define WRITING (writes[0] + 2 * writes[1] + 4 * writes[2])
#endif

inline claim() {
  claimed[0] = visible[0];
  claimed[1] = visible[1];
#if INSERTERS > 2
  claimed[2] = visible[2]
#endif
}

inline look() {  /* who does not listen may not claim; LISTEN, when it succeeds, brings a look */
  if :: listens[l] -> claim() :: else fi
}

inline ring() {
  if :: (listens[0] && !gone[0]) || (listens[1] && !gone[1]) -> claim() :: else fi
}

inline tell_the_other() {
  if :: listens[1 - l] && !gone[1 - l] -> told[1 - l] = true :: else fi
}

inline ask_who_writes() {  /* one backend after the other */
  open = writes[0];
  open = open + 2 * writes[1];
#if INSERTERS > 2
  open = open + 4 * writes[2]
#endif
}

proctype Inserter(byte i) {
  bool bell;
  bool back = (i == 0);  /* one of them may do so once */

insert:
#ifdef TRIES_BEFORE_IT_WRITES
  bell = (lock == FREE);
  writes[i] = true;
#else
  writes[i] = true;
  bell = (lock == FREE);
#endif
  if
#ifdef ROLLBACKS
  :: atomic { back -> back = false; writes[i] = false; bell = false; goto insert }  /* to a savepoint */
  :: atomic { back = false; writes[i] = false; bell = false; goto ended }
#endif
#ifdef UNLOCKS_BEFORE_IT_IS_SEEN
  :: writes[i] = false; visible[i] = true
#else
  :: visible[i] = true; writes[i] = false
#endif
  fi;
  atomic { if :: bell -> ring() :: else fi; back = false; bell = false };
ended:
  skip
}

proctype Doorbell(byte l) provided (!gone[l]) {
end:
  do
  :: atomic { !listens[l] -> listens[l] = true; look();
#ifndef NO_DOUBT_ON_LISTEN
       doubt[l] = true; anew[l] = true
#endif
     }
#ifndef NO_DOUBT_AT_A_DEATH
  :: atomic { l == 1 && listens[1] && gone[0] && !listens[0] && !buried ->
       buried = true; look(); doubt[l] = true; anew[l] = true }
#endif
  :: atomic { told[l] -> told[l] = false; look(); doubt[l] = true; anew[l] = true }
#if defined(STRANGERS) && !defined(NO_DOUBT_AT_A_STRANGER)
  :: atomic { lock == STRANGER && listens[l] && !seen[l] -> seen[l] = true; doubt[l] = true; anew[l] = true }
#endif
  od
}

proctype Awake(byte l) provided (!gone[l]) {
  byte open;
  bit mine;

end:
  do
#ifdef TELLS_BEFORE
  :: atomic { takes > 0 && listens[l] && lock == FREE -> takes--; tell_the_other() };
     atomic { lock == FREE && listens[l] -> lock = l + 1; mine = session[l] };
#else
  :: atomic { takes > 0 && listens[l] && lock == FREE -> takes--; lock = l + 1; mine = session[l]; asks[l] = true };
#endif
#ifdef TELLS_LATER
     asks[l] = false;
#endif
     /* The transaction that took the lock tells it too, unless the backend is terminated in between. */
     atomic {
       if
       :: mine == session[l] && listens[l] ->
#if !defined(TELLS_NOBODY) && !defined(TELLS_BEFORE)
          tell_the_other();
#endif
          doubt[l] = true; anew[l] = true
       :: else  /* LISTEN follows */
       fi;
       asks[l] = false
     };
#ifdef LOOKS_BEFORE_LETTING_GO
     atomic { look(); doubt[l] = false; anew[l] = false };
#endif
     atomic { if :: lock == l + 1 && mine == session[l] -> lock = FREE :: else fi; mine = 0 }

  :: doubt[l] ->
again:
#ifdef ONE_STATEMENT
     anew[l] = false;
     ask_who_writes();
#elif !defined(NOTES_DOUBTS_LATE)
     anew[l] = false;
#endif
     if
     :: lock != FREE ->
        open = 0;
#ifdef NO_WATCH
        lock == FREE;
#else
        atomic { if :: lock == FREE :: ANY_LEFT && listens[l] fi; look() };
#endif
        goto again
     :: else
     fi;
#ifdef LOOKS_BEFORE_ASKING
     atomic { look() };
#endif
#ifndef ONE_STATEMENT
     ask_who_writes();
#endif
#ifdef NOTES_DOUBTS_LATE
     anew[l] = false;
#endif
#ifdef NO_WAIT
     open = 0;
#endif
#ifndef LOOKS_BEFORE_ASKING
     atomic { look() };
#endif
     do
     :: atomic { open == 0 ->
#ifdef FORGETS_DOUBTS
          anew[l] = false;
#endif
          doubt[l] = anew[l]; anew[l] = false; break }
     :: atomic { open != 0 && (anew[l] || takes > 0) -> open = 0; break }  /* begins anew, or wants to be awake */
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
       faults--; gone[0] = true; told[0] = false; doubt[0] = false; anew[0] = false;
       if
       :: killed = true
#ifndef NOT_FROZEN
       :: true  /* frozen */
#endif
       fi }
  :: atomic { listens[0] && (killed || faults > 0) ->  /* its backend notices it, or is terminated */
       if :: killed :: else -> faults-- fi;
       session[0] = 1 - session[0]; listens[0] = false; told[0] = false;
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
    run Inserter(1);
#if INSERTERS > 2
    run Inserter(2);
#endif
    run Doorbell(0); run Awake(0);
    run Doorbell(1); run Awake(1);
    run Fault();
#ifdef STRANGERS
    run Stranger();
#endif
    run Quiet()
  }
}
