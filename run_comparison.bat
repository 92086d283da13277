@echo off
rem The norm comparison, run_comparison.sh for the Windows command prompt: train one masked autoencoder per method and
rem seed, all alike but for the normalisation layer, then draw and tabulate them side by side.
rem
rem   run_comparison.bat --demo                           ten photographs, a small model, minutes on two cores
rem   run_comparison.bat --imagenet_dir D:\data\ILSVRC    ImageNet, ViT-B/16, 100 epochs
rem
rem The same command again goes on where it stopped. With the word status among its options it counts which runs are
rem done, running, failed, diverged and left. Options of this script:
rem
rem   --methods "A B ..."  normalisation layers: LayerNorm (ln), RMSNorm (rms), DynamicTanh (dyt),
rem                        AdaptiveDynamicTanh (adyt), DynamicErf (derf), hardtanh, arctan, isru, softsign, satursin, expsign,
rem                        relsign, saturlog, bhyt, none; --norms is the same flag
rem                        (default: LayerNorm DynamicTanh AdaptiveDynamicTanh). Options may be in the name:
rem                        DynamicTanh-alpha1.0, AdaptiveDynamicTanh-lambda0.5-smooth0.99, also -min and -max
rem   --control            one method more per upper bound among the AdaptiveDynamicTanh: DynamicTanh that starts there,
rem                        as DynamicTanh-alpha<bound>. Does the other adapt, or is it just that?
rem   --reference METHOD   the method that the report holds the others against (default: LayerNorm)
rem   --adyt_lambda "A B ..." and other options of norms
rem                        every method of that norm once per value, as AdaptiveDynamicTanh-lambda<A> ...; with one value
rem                        it is an option of train.py
rem   --seeds "0 1 ..."    one run per method and seed (default: 0)
rem   --lrs "A B ..."      every method at every one of these learning rates; the analysis shows the losses over them, each
rem                        method at its best one, and all at the best one of the reference
rem   --select_seeds "0 ..." more seeds, which choose the best rates and are in no difference: chosen on the seeds that it is
rem                        reported on, a rate looks better than it is
rem   --max_images "A B ..." every method with so many training images, all for all of them; all are validated alike, on all
rem                        images; with one value it is an option of train.py
rem   --output_dir DIR     results; runs are in DIR\<method>\seed<k>, of --max_images and --lrs in DIR\<method>\n<A>\lr<B>\seed<k>
rem                        (default: output_comparison; demo: output_demo)
rem   --checkpoint_dir DIR checkpoints, in folders of the same names (default: the run's folder)
rem   --eval "A B ..."     then evaluate every encoder, and beside it the same network with random weights: finetune,
rem                        linprobe, knn, or by another read-out finetune_cls, linprobe_mean, linprobe_attentive, knn_mean;
rem                        results are in <A> and untrained_<A> in the run's folder
rem   --finetune_flags "..." --linprobe_flags "..." --knn_flags "..."
rem                        options of train.py for these evaluations, such as "--epochs 50 --batch_size 256"; of the
rem                        others they get --overwrite and those on data, model, norm and device
rem   --demo               demo data and settings; what is typed wins
rem   --jobs J             J runs side by side, dealt over the visible GPUs or the cores (default: auto, which is 1, and with
rem                        --demo where there is no GPU one a core, or all if less than two a core)
rem   --nproc N            N processes a run, by torchrun; --batch_size is for each of them (default: 1)
rem   --warm auto|off      runs of one process each share it, one after the other, so that Python and torch start once (auto,
rem                        the default), or each has its own
rem   --wandb              log the runs and the analysis to Weights & Biases, project WANDB_PROJECT or mae-norm-comparison;
rem   --wandb_project NAME likewise, to this project
rem   --open               open the analysis's report.html in the browser
rem   --clone_mae          first clone upstream's MAE, patched, into mae beside this script; runs then train its model
rem   --dry_run            print the commands and run nothing
rem   --help               this text, then the options of train.py; one that is not listed here goes to every pre-training
rem
rem "set PYTHON=C:\path\to\python.exe" chooses the interpreter; without it .venv is made here if the active one lacks a
rem package. The torch that pip installs there uses no GPU: where there is one, a line says what to type for one that does.
rem Exit codes: 0 all runs ended, 1 some failed (listed last), 2 bad input, 130 interrupted.

setlocal enableextensions disabledelayedexpansion
set "KIT=%~dp0"
rem A backslash before a closing quote, as in "D:\out\", would take the quote for part of the name.
set args=%*
if defined args set args=%args:\"="%
rem PYTHON: the one given, else the active one if it has all packages, else .venv beside this script, made once.
if defined PYTHON set "PYTHON=%PYTHON:"=%"
if defined PYTHON goto given_python
set "active="
for %%c in (python.exe py.exe) do if not defined active call :try_python "%%~$PATH:c"
if not defined active set "problem=no Python 3.11 or newer found. Install one, or set PYTHON to its path." & goto fail
set "PYTHON=%active%"
call :try_without_packages
if defined light goto have_python
rem py.exe chooses a Python for each script anew, so it only makes .venv.
if /i "%active:~-7%"=="\py.exe" goto use_venv
"%PYTHON%" "%KIT%maekit\drivers\check_environment.py" --import 2>nul
if not errorlevel 1 goto have_python

:use_venv
rem The list .venv was made from is copied into it last, so an interrupted installation is made anew.
set "PYTHON=%KIT%.venv\Scripts\python.exe"
set "same=import filecmp, sys; sys.exit(not filecmp.cmp(*sys.argv[1:], shallow=False))"
"%PYTHON%" -c "%same%" "%KIT%requirements-frozen.txt" "%KIT%.venv\made-from.txt" 2>nul
if not errorlevel 1 goto have_python
setlocal enabledelayedexpansion
echo making !KIT!.venv; torch is large, this takes some minutes
endlocal
"%active%" -m venv --clear "%KIT%.venv"
if errorlevel 1 set "problem=%active% -m venv failed (see above). Or set PYTHON." & goto fail
"%PYTHON%" -m pip install --disable-pip-version-check -r "%KIT%requirements-frozen.txt"
if errorlevel 1 set "problem=installing requirements-frozen.txt failed; the same command tries again." & goto fail
"%PYTHON%" "%KIT%maekit\drivers\check_environment.py" --import
if errorlevel 1 set "problem=%KIT%.venv is not usable (see above)." & goto fail
copy /y "%KIT%requirements-frozen.txt" "%KIT%.venv\made-from.txt" >nul
goto have_python

:given_python
call :try_without_packages
if defined light goto have_python
"%PYTHON%" "%KIT%maekit\drivers\check_environment.py"
if errorlevel 1 set "problem=PYTHON=%PYTHON% cannot run the kit (see above). Install requirements.txt there, or unset PYTHON." & goto fail

:have_python
"%PYTHON%" "%KIT%maekit\drivers\windows.py" %args%
exit /b %ERRORLEVEL%

:try_python
if "%~1"=="" exit /b 0
"%~1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>nul
if not errorlevel 1 set "active=%~1"
exit /b 0

:try_without_packages
rem Help, status and dry runs need no packages.
set "light="
"%PYTHON%" "%KIT%maekit\drivers\windows.py" --without_packages %args% 2>nul
if not errorlevel 1 set "light=1"
exit /b 0

:fail
rem Delayed, so that an & in it is not the end of a command.
setlocal enabledelayedexpansion
echo error: !problem!>&2
exit /b 2
