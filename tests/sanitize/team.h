/* How many threads a parallel region gets at most, however many it asks for: as OMP_THREAD_LIMIT does. */
#pragma once
extern int team_limit;

/* How many processors there seem to be, and by how many ms all threads but the first begin late. */
extern int team_processors, team_late;
