@echo off
rem The norm comparison, run_comparison.sh for the Windows command prompt: train one masked autoencoder per method and
rem seed, all alike but for the normalisation layer, then draw and tabulate them side by side.
rem
rem   run_comparison.bat --demo                           ten photographs, a small model, minutes on two cores
rem   run_comparison.bat --imagenet_dir D:\data\ILSVRC    ImageNet, ViT-B/16, 100 epochs
rem
rem The same command again goes on where it stopped. Options of this script:
rem
rem   --methods "A B ..."  normalisation layers: LayerNorm (ln), RMSNorm (rms), DynamicTanh (dyt),
rem                        AdaptiveDynamicTanh (adyt), DynamicErf (derf); --norms is the same flag
rem                        (default: LayerNorm DynamicTanh AdaptiveDynamicTanh)
rem   --seeds "0 1 ..."    one run per method and seed (default: 0)
rem   --output_dir DIR     results; runs are in DIR\<method>\seed<k> (default: output_comparison; demo: output_demo)
rem   --demo               demo data and settings; what is typed wins
rem   --clone_mae          first clone upstream's MAE, patched, into mae beside this script; runs then train its model
rem   --dry_run            print the commands and run nothing
rem   --help               this text, then the options of train.py, which every other option goes to as it is
rem
rem "set PYTHON=C:\path\to\python.exe" chooses the interpreter; without it .venv is made here if the active one lacks a
rem package. The torch that pip installs on Windows has no CUDA: for a GPU set PYTHON to one with pytorch.org's build.
rem Exit codes: 0 all runs ended, 1 some failed (listed last), 2 bad input, 130 interrupted.

setlocal enableextensions disabledelayedexpansion
set "KIT=%~dp0"
set "methods=LayerNorm DynamicTanh AdaptiveDynamicTanh"
set "seeds=0"
set "output_dir="
set "clone_mae="
set "dry_run="
set "help="
set "train_flags="

rem cmd makes two words of --flag=value, but one of "--flag=value", as PowerShell sends it.
:next_word
if [%1]==[] goto words_read
if "%~1"=="/?" set "help=1" & goto word_read
set "flag=%~1"
set "value="
for /f "tokens=1* delims==" %%f in ("%~1") do (
    set "flag=%%f"
    set "value=%%g"
)
set "option="
for %%n in (--methods --norms --norm) do if "%flag%"=="%%n" set "option=methods"
for %%n in (--seeds --seed) do if "%flag%"=="%%n" set "option=seeds"
if "%flag%"=="--output_dir" set "option=output_dir"
if defined option goto take_value
if "%flag%"=="--clone_mae" set "clone_mae=1" & goto word_read
if "%flag%"=="--dry_run" set "dry_run=1" & goto word_read
for %%n in (--help -h) do if "%flag%"=="%%n" set "help=1"
if "%flag%"=="--demo" if not defined output_dir set "output_dir=output_demo"
rem The word keeps its own quotes, so there are none around the whole.
set train_flags=%train_flags% %1
goto word_read
:take_value
if defined value goto store_value
set "value=%~2"
if [%2]==[] set "value=--"
if "%value:~0,2%"=="--" set "problem=%flag%: needs a value. See run_comparison.bat --help." & goto fail
shift /1
:store_value
set "%option%=%value%"
:word_read
shift /1
goto next_word

:words_read
if not defined output_dir set "output_dir=output_comparison"
set "output_dir=%output_dir:/=\%"
rem A backslash before a closing quote would escape it.
:trim
if "%output_dir:~-1%"=="\" set "output_dir=%output_dir:~0,-1%" & goto trim

rem PYTHON: the one given, else the active one if it has all packages, else .venv beside this script, made once.
if defined PYTHON set "PYTHON=%PYTHON:"=%"
if defined PYTHON goto given_python
set "active="
for %%c in (python.exe py.exe) do if not defined active call :try_python "%%~$PATH:c"
if not defined active set "problem=no Python 3.11 or newer found. Install one, or set PYTHON to its path." & goto fail
set "PYTHON=%active%"
if defined help goto have_python
if defined dry_run goto have_python
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
echo making %KIT%.venv; torch is large, this takes some minutes
"%active%" -m venv --clear "%KIT%.venv"
if errorlevel 1 set "problem=%active% -m venv failed (see above). Or set PYTHON." & goto fail
"%PYTHON%" -m pip install --disable-pip-version-check -r "%KIT%requirements-frozen.txt"
if errorlevel 1 set "problem=installing requirements-frozen.txt failed; the same command tries again." & goto fail
"%PYTHON%" "%KIT%maekit\drivers\check_environment.py" --import
if errorlevel 1 set "problem=%KIT%.venv is not usable (see above)." & goto fail
copy /y "%KIT%requirements-frozen.txt" "%KIT%.venv\made-from.txt" >nul
goto have_python

:given_python
if defined help goto have_python
if defined dry_run goto have_python
"%PYTHON%" "%KIT%maekit\drivers\check_environment.py"
if errorlevel 1 set "problem=PYTHON=%PYTHON% cannot run the kit (see above). Install requirements.txt there." & goto fail

:have_python
if defined help goto help
if defined clone_mae call :clone_mae
if defined clone_mae if errorlevel 1 exit /b %ERRORLEVEL%
rem values.py prints the names only if all of them are known, else an error.
set "names="
for /f "delims=" %%m in ('set "PYTHONPATH=%KIT%"^& "%PYTHON%" -m maekit.drivers.values --methods %methods%') do call :add_name %%m
if not defined names exit /b 2
set /a number=0, total=0
for %%s in (%seeds%) do for %%m in (%names%) do set /a total+=1
if %total%==0 set "problem=--seeds: is empty. Try --seeds 0, or --seeds "0 1 2"." & goto fail
if defined dry_run goto each_run
rem What is wrong with the flags or the data is wrong for every run: said once, before the first.
"%PYTHON%" "%KIT%train.py" --dry_run%train_flags%
if errorlevel 1 exit /b %ERRORLEVEL%
mkdir "%output_dir%" 2>nul
if not exist "%output_dir%\" set "problem=--output_dir %output_dir%: cannot be made. Choose another." & goto fail

:each_run
set "failed="
set "stop="
for %%s in (%seeds%) do for %%m in (%names%) do if not defined stop call :run_one %%m %%s
if defined stop exit /b %stop%
if defined dry_run exit /b 0
"%PYTHON%" "%KIT%analysis.py" comparison --output_dir "%output_dir%"
if not defined failed exit /b %ERRORLEVEL%
echo.>&2
echo failed; the same command tries again:>&2
for /f "tokens=1* delims==" %%f in ('set failed_run_') do echo %%g>&2
exit /b 1

:try_python
if "%~1"=="" exit /b 0
"%~1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>nul
if not errorlevel 1 set "active=%~1"
exit /b 0

:add_name
set "names=%names% %1"
exit /b 0

rem The PYTHONPATH of the runs stays the user's.
:clone_mae
setlocal
if defined dry_run echo set "PYTHONPATH=%KIT%" ^& "%PYTHON%" -m maekit.upstream "%KIT%mae"
if defined dry_run exit /b 0
set "PYTHONPATH=%KIT%"
"%PYTHON%" -m maekit.upstream "%KIT%mae"
exit /b %ERRORLEVEL%

rem A failed run does not stop the rest, an interrupt does.
:run_one
set /a number+=1
set words="%KIT%train.py" --norm %1 --seed %2 --output_dir "%output_dir%\%1\seed%2"%train_flags%
if defined dry_run echo "%PYTHON%" %words%
if defined dry_run exit /b 0
echo.
echo [%number%/%total%] "%PYTHON%" %words%
"%PYTHON%" %words%
set "code=%ERRORLEVEL%"
if %code%==0 exit /b 0
rem What Python and Windows call an interrupt.
for %%c in (130 -1073741510) do if %code%==%%c set "stop=130"
if defined stop echo stopped in %number% of %total%; the same command goes on from there.>&2
set "failed=1"
set failed_run_%number%=exit code %code%: "%PYTHON%" %words%
exit /b 0

:help
"%PYTHON%" -c "import sys; print(*(line[4:] for line in open(sys.argv[1]).read().partition('\n\n')[0].split('\n')[1:]), sep='\n')" "%~f0"
"%PYTHON%" "%KIT%train.py" --help
exit /b %ERRORLEVEL%

:fail
echo error: %problem%>&2
exit /b 2
