/* How many threads a parallel region gets at most, however many it asks for: as OMP_THREAD_LIMIT does. */
#pragma once
extern int team_limit;
