"""Cohorts: folders that show the series of a query or of a manifest.

`folder` has the texts of cohorts, which `text` parses; `build`, the program of a child process, makes views of them;
`results` keeps these views on disk; `registry` knows what each cohort of a mount shows. The rooms after `cohorts` may
import it. A `Cohorts` owns what one mount knows of its cohorts and belongs to the event loop. Texts and views are files
that all mounts and commands share, and that are replaced as a whole.
"""
