# Scripts that run an installed build: share/bitshard/jobs.
jobsdir = $(pkgdatadir)/jobs
dist_jobs_SCRIPTS = jobs/long-context.sbatch jobs/batch.sbatch jobs/bench.sbatch jobs/long-context.sh jobs/batch.sh jobs/bench.sh
dist_jobs_DATA = jobs/README.md
